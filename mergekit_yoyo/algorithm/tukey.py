"""The published consensus, steps 4 to 9: Tukey-weighted mean in the subspace of the residuals.

With H = R R^T = V S^2 V^T (K x K) the thin SVD R^T = Q S V^T of step 5 gives Z = R Q' = V' S',
and the update Q' z = R^T V' S'^-1 z: everything is known as K coefficients of the residuals.
All arrays are float64 with the problems along the first axis (B).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.options import Options, TensorKind
from mergekit_yoyo.algorithm.result import Details
from mergekit_yoyo.algorithm.robust import Array, average, mad_scale, tukey_weights
from mergekit_yoyo.algorithm.span import Span
from mergekit_yoyo.algorithm.streaming import weighted_median_sum, weighted_sum
from mergekit_yoyo.algorithm.tolerances import NO_RESIDUAL


class Tukey:
    """`consensus: tukey`."""

    options = ("tukey_c", "max_scale", "mad_median")

    def check(self, kind: TensorKind, shape: Sequence[int], name: str) -> None:
        """Every tensor will do."""

    def merge(
        self,
        tensors: Sequence[Tensor],
        span: Span,
        options: Options,
        anchor: int | None,
        kind: TensorKind,
        out: Tensor | None,
    ) -> Details:
        """Steps 4 to 9 for B problems [B, ...], written to `out` unless it is None."""
        # steps 4 to 7: y' = m + sum_k update_k R_k
        found = update_of(span, options, anchored=anchor is not None)
        # steps 8 and 9
        coefficients = restore(tensors, span, found.update, options, out)

        return Details(
            weights=found.weights,
            coefficients=coefficients,
            center_weights=span.center_weights,
            rank=found.rank,
            energy=found.energy,
            energy_scale=found.energy_scale,
            direction_scales=found.direction_scales,
            global_scale=found.global_scale,
            residual_gram=span.residual_gram,
            residual_norms=found.residual_norms,
            rms=span.rms,
            norms=span.norms,
            iterations=span.iterations,
            center_status=span.status,
        )

    def identical(self, details: Details) -> NDArray[np.bool_]:
        """[P], the problems in which no direction is left."""
        return np.atleast_1d(np.asarray(details.rank) == 0)

    def alone(self, details: Details, anchored: bool) -> NDArray[np.bool_]:
        """[P]; never: two inputs have a weighted mean as well."""
        return np.zeros_like(self.identical(details))


@dataclass(frozen=True)
class Update:
    """The update lambda Q' z = sum_k update_k R_k of step 7, and how it came about.

    update: [B, K] coefficients of the residuals; zero where step 4 ends the method.
    weights: [B, K] in [0, 1], mean of W_kj over the kept directions weighted by their energy:
        1 is fully trusted, 0 is rejected. All 1 where there is no residual.
    residual_norms: [B, K] ||R_k||.
    rank: [B] kept directions r'.
    energy: [B] energy ratio p; energy_scale: [B] lambda. Both 1 where step 4 ends the method.
    direction_scales: [B, K] s_j of the kept directions, NaN beyond the rank; global_scale: [B] s_g.
    """

    update: Array
    weights: Array
    residual_norms: Array
    rank: NDArray[np.int64]
    energy: Array
    energy_scale: Array
    direction_scales: Array
    global_scale: Array


def update_of(span: Span, options: Options, *, anchored: bool) -> Update:
    """Steps 4 to 7 for the B problems of a span.

    Directions at or below its noise carry nothing and count as rank loss. An input that weighs
    nothing, as an anchor may, has no part in the scales.
    """
    residual_gram, noise, eps = span.residual_gram, span.noise, options.eps
    k = residual_gram.shape[1]
    counts = span.priors > 0

    # step 4
    residual_norms = np.sqrt(np.maximum(np.diagonal(residual_gram, axis1=1, axis2=2), 0.0))
    has_residual = residual_norms.max(1) >= NO_RESIDUAL

    # step 5, largest singular value first
    eigenvalues, vectors = np.linalg.eigh(residual_gram)
    singular = np.sqrt(np.maximum(eigenvalues[:, ::-1], 0.0))
    vectors = vectors[:, :, ::-1]
    kept = singular > noise[:, None]
    kept[:, k - 1 :] = False
    kept &= has_residual[:, None]

    # step 6
    total = (singular**2).sum(1)
    energy = np.where(kept, singular**2, 0.0).sum(1) / (total + eps)
    energy_scale = np.minimum(1.0 / (energy + eps), options.max_scale)

    # step 7
    z = np.where(kept[:, None, :], vectors * singular[:, None, :], 0.0)
    distances = np.linalg.norm(z, axis=2)
    direction_scales = mad_scale(np.abs(z[:, counts]), 1, options.mad_median)
    global_scale = mad_scale(distances[:, counts], 1, options.mad_median)
    by_direction = tukey_weights(np.abs(z), direction_scales[:, None, :], options.tukey_c, eps)
    by_input = tukey_weights(distances, global_scale[:, None], options.tukey_c, eps)
    w = by_direction * by_input[:, :, None]
    prior_w = span.priors[:, None] * w
    mean_z = (prior_w * z).sum(1) / (prior_w.sum(1) + eps)
    if k == 2 and not anchored:  # neither can outvote the other: y' = m
        mean_z = np.zeros_like(mean_z)
    along = np.where(kept, mean_z / np.where(kept, singular, 1.0), 0.0)
    update = energy_scale[:, None] * np.einsum("bkj,bj->bk", vectors, along)

    share = np.where(kept, singular**2, 0.0)
    share_total = share.sum(1, keepdims=True)
    weights = np.einsum("bkj,bj->bk", w, share) / np.where(share_total > 0, share_total, 1.0)
    return Update(
        update=update,
        weights=np.where(share_total > 0, weights, 1.0),
        residual_norms=residual_norms,
        rank=kept.sum(1),
        energy=np.where(has_residual, energy, 1.0),
        energy_scale=np.where(has_residual, energy_scale, 1.0),
        direction_scales=np.where(kept, direction_scales, np.nan),
        global_scale=global_scale,
    )


def restore(
    tensors: Sequence[Tensor], span: Span, update: Array, options: Options, out: Tensor | None
) -> Array:
    """Steps 8 and 9: y' = m + sum_k update_k R_k with the RMS and the norm of the inputs, written
    to `out` unless it is None.

    update: [B, K]. Gives the coefficients [B, K] of the x_k, NaN with the coordinate median.
    """
    y = span.center + np.einsum("bk,bkm->bm", update, span.residuals)
    mean_rms = average(span.rms, span.priors, options.rescale)
    norm = mean_rms * span.norm(y)
    mean_norm = average(span.norms, span.priors, options.rescale)
    scale = mean_rms * mean_norm / (norm + options.eps)

    # in terms of the inputs: R_k = u_k - m, u_k = unit_scale_k x_k
    remaining_center = 1.0 - update.sum(1)
    if span.around_median:
        weights = scale[:, None] * span.unit_scale * update
        if out is not None:
            of_center = scale * remaining_center
            weighted_median_sum(tensors, span.unit_scale, of_center, weights, span.priors, out)
        return np.asarray(np.full_like(update, np.nan))
    of_units = update + remaining_center[:, None] * span.center_weights
    coefficients: Array = scale[:, None] * span.unit_scale * of_units
    if out is not None:
        weighted_sum(tensors, coefficients, out)
    return coefficients
