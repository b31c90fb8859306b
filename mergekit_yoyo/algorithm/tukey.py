"""The published consensus, steps 4 to 9: Tukey-weighted mean in the subspace of the residuals.

With H = R R^T = V S^2 V^T (K x K) the thin SVD R^T = Q S V^T of step 5 gives Z = R Q' = V' S',
and the update Q' z = R^T V' S'^-1 z: everything is known as K coefficients of the residuals.
All arrays are float64 with the problems along the first axis (B).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.options import Options, RankRule, TensorKind
from mergekit_yoyo.algorithm.result import Details
from mergekit_yoyo.algorithm.robust import Array, average, mad_scale, tukey_weights, welsch_weights
from mergekit_yoyo.algorithm.rounding import Destination, Rounding
from mergekit_yoyo.algorithm.span import Span
from mergekit_yoyo.algorithm.streaming import weighted_median_sum, weighted_sum
from mergekit_yoyo.algorithm.tolerances import NO_RESIDUAL, ROUND_OFF


class Tukey:
    """`consensus: tukey`."""

    options = (
        "tukey_c",
        "weight_function",
        "welsch_c",
        "deviations",
        "rank_by",
        "scale_by",
        "max_scale",
        "mad_median",
        "matrix_boost",
    )

    def check(self, kind: TensorKind, shape: Sequence[int], name: str) -> None:
        """Every tensor will do."""

    def merge(
        self,
        tensors: Sequence[Tensor],
        span: Span,
        options: Options,
        anchor: int | None,
        kind: TensorKind,
        out: Destination | None,
    ) -> Details:
        """Steps 4 to 9 for B problems [B, ...], written to `out` unless it is None."""
        # steps 4 to 7: y' = m + sum_k update_k R_k
        size = prod(tensors[0].shape[1:])
        found = update_of(span, options, size=size, anchored=anchor is not None)
        # steps 8 and 9
        boosted = options.matrix_boost and tensors[0].ndim == 3 and kind != "embedding"
        finish = restore_boosted if boosted else restore
        coefficients, rounding = finish(tensors, span, found.update, options, out)

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
            rounding=rounding,
        )

    def identical(self, details: Details, anchor: int | None) -> NDArray[np.bool_]:
        """[P], the problems in which no direction is left."""
        return np.atleast_1d(np.asarray(details.rank) == 0)

    def alone(self, details: Details, anchor: int | None) -> NDArray[np.bool_]:
        """[P]; never: two inputs have a weighted mean as well."""
        return np.zeros_like(self.identical(details, anchor))


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


def update_of(span: Span, options: Options, *, size: int, anchored: bool) -> Update:
    """Steps 4 to 7 for the B problems of a span.

    size: of a tensor. Directions at or below the span's noise carry nothing and count as rank loss.
    An input that weighs nothing, as an anchor may, has no part in the scales.
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
    kept &= np.arange(k) < rank_of(singular, options.rank_by, size)[:, None]
    kept &= has_residual[:, None]

    # step 6
    total = (singular**2).sum(1)
    energy = np.where(kept, singular**2, 0.0).sum(1) / (total + eps)
    energy_scale = 1.0 / (energy + eps)
    if options.scale_by == "root":
        energy_scale = np.sqrt(energy_scale)
    energy_scale = np.minimum(energy_scale, options.max_scale)

    # step 7
    z = np.where(kept[:, None, :], vectors * singular[:, None, :], 0.0)
    off = z - np.median(z[:, counts], axis=1)[:, None] if options.deviations == "median" else z
    distances = np.linalg.norm(off, axis=2)
    direction_scales = mad_scale(np.abs(off[:, counts]), 1, options.mad_median)
    global_scale = mad_scale(distances[:, counts], 1, options.mad_median)
    by_direction = _weights(np.abs(off), direction_scales[:, None, :], options)
    by_input = _weights(distances, global_scale[:, None], options)
    w = by_direction * by_input[:, :, None]
    prior_w = span.priors[:, None] * w
    mean_z = (prior_w * z).sum(1) / (prior_w.sum(1) + eps)
    if k == 2 and not anchored and options.deviations == "center":
        # neither can outvote the other: y' = m
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


def _weights(magnitudes: Array, scale: Array, options: Options) -> Array:
    if options.weight_function == "welsch":
        return welsch_weights(magnitudes, scale, options.welsch_c, options.eps)
    return tukey_weights(magnitudes, scale, options.tukey_c, options.eps)


def rank_of(singular: Array, rule: RankRule, size: int) -> NDArray[np.int64]:
    """[B], how many directions step 5 keeps of the singular values [B, K] in falling order.

    `full` is the published K - 1. `principal` is the participation ratio (sum s^2)^2 / sum s^4,
    rounded. `noise`: those beyond what K residuals of independent noise would have; its variance is
    the median of the K - 1 s^2 / size, and its edge (1 + sqrt(K / size))^2 times that (Marchenko
    and Pastur 1967).
    """
    squares = singular**2
    k = squares.shape[1]
    if rule == "principal":
        fourth = np.maximum((squares**2).sum(1), np.finfo(float).tiny)
        ratio = np.rint(squares.sum(1) ** 2 / fourth)
        return np.asarray(np.clip(ratio, 1, k), dtype=np.int64)
    if rule == "noise":
        edge = np.median(squares[:, : k - 1], axis=1) * (1 + np.sqrt(k / size)) ** 2
        return np.asarray((squares[:, : k - 1] > edge[:, None]).sum(1))
    return np.full(len(squares), k - 1)


def restore(
    tensors: Sequence[Tensor], span: Span, update: Array, options: Options, out: Destination | None
) -> tuple[Array, Tensor | None]:
    """Steps 8 and 9: y' = m + sum_k update_k R_k with the RMS and the norm of the inputs, written
    to `out` unless it is None.

    update: [B, K]. Gives the coefficients [B, K] of the x_k, NaN with the coordinate median, and
    what rounding lost, [B] (`Rounding.lost`).
    """
    y = span.center + np.einsum("bk,bkm->bm", update, span.residuals)
    mean_rms, mean_norm = _sizes(span, options)
    norm = mean_rms * span.norm(y)
    scale = mean_rms * mean_norm / (norm + options.eps)

    # in terms of the inputs: R_k = u_k - m, u_k = unit_scale_k x_k
    remaining_center = 1.0 - update.sum(1)
    if span.around_median:
        weights = scale[:, None] * span.unit_scale * update
        nothing = np.asarray(np.full_like(update, np.nan))
        if out is None:
            return nothing, None
        of_center = scale * remaining_center
        return nothing, weighted_median_sum(
            tensors, span.unit_scale, of_center, weights, span.priors, out
        )
    of_units = update + remaining_center[:, None] * span.center_weights
    coefficients: Array = scale[:, None] * span.unit_scale * of_units
    return coefficients, None if out is None else weighted_sum(tensors, coefficients, out)


def restore_boosted(
    tensors: Sequence[Tensor], span: Span, update: Array, options: Options, out: Destination | None
) -> tuple[Array, Tensor | None]:
    """Steps 8 and 9 with the singular values of each update, as a matrix, set to the largest.

    tensors: [B, rows, columns]. Those at round-off stay what they are. The result is no combination
    of the inputs: its coefficients [B, K] are NaN. Takes float64 matrices of the tensor's size.
    Gives what rounding lost besides, [B].
    """
    nothing = np.full_like(update, np.nan)
    if out is None:
        return nothing, None
    rounding = Rounding(out)
    factor = span.unit_scale * update
    rest = -update.sum(1)
    mean_rms, mean_norm = _sizes(span, options)
    for problem in range(len(out.tensor)):
        one = slice(problem, problem + 1)
        inputs = [x[one] for x in tensors]
        center, move = (torch.empty_like(out.tensor[one], dtype=torch.float64) for _ in range(2))
        _combine(inputs, span, one, np.ones(1), np.zeros_like(update[one]), center)
        _combine(inputs, span, one, rest[one], factor[one], move)
        left, singular, right = torch.linalg.svd(move[0], full_matrices=False)
        largest = singular.amax()
        boosted = torch.where(singular > ROUND_OFF * largest, largest, singular)
        merge = center[0].addmm_(left * boosted, right).mul_(float(mean_rms[problem]))
        merge.mul_(float(mean_norm[problem]) / (torch.linalg.vector_norm(merge) + options.eps))
        rounding.write((one,), merge[None])
    return nothing, rounding.lost


def _sizes(span: Span, options: Options) -> tuple[Array, Array]:
    """[B], the RMS of step 8 and the norm of step 9 that the merge gets."""
    rms, norm = (average(x, span.priors, options.rescale) for x in (span.rms, span.norms))
    return rms, norm


def _combine(
    tensors: Sequence[Tensor], span: Span, part: slice, center: Array, factor: Array, out: Tensor
) -> None:
    """center m + sum_k factor_k x_k for some problems; center: [B], factor: [B, K]."""
    scale = span.unit_scale[part]
    if span.around_median:
        weighted_median_sum(tensors, scale, center, factor, span.priors, Destination(out))
    else:
        of_center = center[:, None] * span.center_weights[part] * scale
        weighted_sum(tensors, of_center + factor, Destination(out))
