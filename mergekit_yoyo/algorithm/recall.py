"""Recall, the other consensus: each residual counts where in input space its model moved.

1. m: a center that broken inputs cannot move; omega_k: how far each input is trusted, times the
   weight that its model was given.
   R_k = x_k - m, in the inputs' own scale; with `rescale: median` every input gets the median RMS
   first, so that one of wrong scale cannot set the scale of m.
2. C_k = R_k^T R_k / ||R_k||^2: the energy of each model in the space of the layer's inputs, every
   model with the same total. Diagonal for embedding tables and vectors.
3. m + P errs least on every model's own inputs, and where nobody's inputs say anything it is the
   prior y_0 = m + alpha sum_k omega_k R_k:

       sum_k omega_k |(m + P - x_k) C_k^(1/2)|^2 + (rho / in) |m + P - y_0|^2 is least for
       P = (sum_k omega_k R_k C_k + (rho / in) (y_0 - m)) (sum_k omega_k C_k + (rho / in) I)^-1.

   Around a base rho to infinity is task arithmetic with the factor alpha, rho to zero with alpha 1
   where the iteration of WUDI ends. Without one the omega_k R_k add up to nothing: y_0 = m.
4. y = m + beta P. Norms are not restored.

After Model Merging via Data-Free Covariance Estimation (arXiv 2604.01329), which starts from a base
model, WUDI-Merging (arXiv 2503.08099) and RegMean (arXiv 2212.09849). Residuals from a robust
center need no base, but each holds 1/K of every other model's move: beta makes up for that
(`closed_form_strength`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.options import Options, TensorKind
from mergekit_yoyo.algorithm.precision import whole_float32
from mergekit_yoyo.algorithm.result import Details
from mergekit_yoyo.algorithm.robust import Array, mad_scale, tukey_weights, weighted_median
from mergekit_yoyo.algorithm.rounding import Destination, Rounding
from mergekit_yoyo.algorithm.spaces import Space, Weighing, layer_inputs, spaces_of
from mergekit_yoyo.algorithm.span import Span
from mergekit_yoyo.algorithm.tolerances import (
    STRENGTH_BOUND,
    STRENGTH_DENOMINATOR,
    TRUST_ROUNDS,
    TRUST_STEP,
)
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.rejection import REJECTED

MAX_INPUTS = 2**16  # of a linear layer: 34 GB for one matrix
NARROW = 128  # inputs of a layer, up to which `auto` is the same for all
MOST_AUTO_RIDGE, LEAST_AUTO_RIDGE = 10.0, 3.0


class Recall:
    """`consensus: recall`."""

    options = ("tukey_c", "ridge", "recall_prior", "recall_strength", "recall_precision")

    def check(self, kind: TensorKind, shape: Sequence[int], name: str) -> None:
        """Raises YoyoError unless a tensor, or an expert, of this shape can be one of that kind."""
        fits = {"linear": len(shape) > 1, "transposed": len(shape) == 2}
        if not fits.get(kind, True):
            raise YoyoError(f"{name}: kind: {kind} expects a matrix; got shape {list(shape)}.")
        inputs = math.prod(shape[1:]) if kind in ("linear", "auto") else 0
        if inputs > MAX_INPUTS:
            raise YoyoError(
                f"{name}: shape {list(shape)} would be one linear layer of {inputs:,} inputs, and "
                "recall needs a matrix of inputs x inputs. Set experts: separate for packed "
                "experts, kind: embedding for a table."
            )

    def merge(
        self,
        tensors: Sequence[Tensor],
        span: Span,
        options: Options,
        anchor: int | None,
        kind: TensorKind,
        out: Destination | None,
    ) -> Details:
        """Steps 1 to 4 for B problems [B, ...], written to `out` unless it is None.

        Raises FloatingPointError where float32 was asked for and does not do.
        """
        # step 1: trust on the scale of u_k, center and residuals on that of x_k, or on one for all
        priors = span.priors
        if anchor is not None:  # no input: what it was given must not move the mean of the others
            priors = priors / np.delete(priors, anchor).mean()
        trust = trusted_center(
            span.residual_gram,
            span.noise,
            anchor,
            priors,
            tukey_c=options.tukey_c,
            eps=options.eps,
        )
        scale = np.ones_like(span.rms)
        if options.rescale == "median":
            scale = weighted_median(span.rms, span.priors, axis=1)[:, None] / span.rms
        residual_squares = span.own_residual_squares(scale, trust.center)
        counted = np.where(residual_squares > 0, priors * trust.weights, 0.0)

        strength = closed_form_strength(counted, anchored=anchor is not None)
        if options.recall_strength != "auto":
            strength = np.where(strength > 0, options.recall_strength, 0.0)

        inputs = layer_inputs(tensors[0], kind)
        prior = np.zeros(len(counted))
        if anchor is not None:
            prior = prior_factor(counted, options.recall_prior, inputs)

        # steps 2 to 4, as many problems at once as memory allows
        weighing = Weighing(
            scale=scale,
            center=trust.center,
            trust=counted,
            norms=scale * span.norms,
            residual_squares=residual_squares,
            strength=strength,
            prior=prior,
            ridge=ridge_over(options.ridge, inputs),
        )
        spaces = spaces_of(tensors, weighing, kind, options.recall_precision, out)
        with whole_float32():
            found = [_merge_in(space, part) for space, part in spaces]
        return Details(
            weights=trust.weights,
            center_weights=trust.center,
            residual_gram=trust.residual_gram,
            residual_norms=np.sqrt(np.diagonal(trust.residual_gram, axis1=1, axis2=2).clip(0.0)),
            rms=span.rms,
            norms=span.norms,
            iterations=trust.iterations,
            center_status=trust.status,
            strength=strength,
            recalled=torch.cat([recalled for recalled, _, _ in found]),
            condition_number=torch.cat([condition for _, condition, _ in found]),
            rounding=None if out is None else torch.cat([lost for _, _, lost in found]),
        )

    def identical(self, details: Details, anchor: int | None) -> NDArray[np.bool_]:
        """[P], the problems in which no input has anything of its own, and none was rejected."""
        weights = details.weights.reshape(-1, details.weights.shape[-1])
        recalled = _on_host(details.recalled).reshape(weights.shape)
        rejected = weights < REJECTED
        if anchor is not None:
            rejected = np.delete(rejected, anchor, axis=1)
        return np.asarray(np.isnan(recalled).all(1) & ~rejected.any(1))

    def alone(self, details: Details, anchor: int | None) -> NDArray[np.bool_]:
        """[P], the problems with less than three inputs that differ, and no anchor to tell them
        apart by: nothing could be recalled."""
        nothing = np.atleast_1d(np.asarray(details.strength) == 0)
        return nothing & ~self.identical(details, anchor) & (anchor is None)


def _merge_in(space: Space, out: Destination | None) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 2 to 4 for the problems of a space, a block of rows at a time.

    Gives tensors on the device, which need not be waited for: [B, K], how much of its own residual
    each input has back, <y - m, R_k>_C_k / <R_k, R_k>_C_k, NaN where it has none; [B], an upper
    bound on the condition number of the sum of the omega_k C_k with its ridge; [B], what rounding
    lost, if there is anything written (`Rounding.lost`), else nothing.
    """
    # step 2
    energies = space.energies()
    space = energies.space  # in float64 where float32 would show
    kept, own = space.per_input(), space.per_input()
    rounding = None if out is None else Rounding(out)
    for block in space.blocks():
        center, residuals = space.residuals(block)

        # step 3
        weighted, divisor = energies.of(residuals)  # omega_k R_k C_k, and what they are divided by
        pulled = space.prior(residuals, like=center)  # (rho / in) (y_0 - m)
        for part in weighted.values():
            pulled.add_(part)
        recalled = energies.divide(pulled, divisor)

        # step 4
        move = recalled.mul_(space.strength)
        for k, part in weighted.items():
            kept[k] += _dot(move, part)
            own[k] += _dot(residuals[k], part)
        if rounding is not None:
            rounding.write((slice(None), block), center.add_(move))
    lost = kept.new_empty(0) if rounding is None else rounding.lost
    return (kept / own).T.double(), energies.condition().double(), lost


@dataclass(frozen=True)
class Trust:
    """Whom to trust, and the center that follows.

    weights: [B, K] in [0, 1], omega; 0 for the rejected, and for an anchor, which is no input here.
    center: [B, K], m = sum_k center_k u_k. residual_gram: [B, K, K] around that center.
    iterations: [B], rounds until the weights were still; status: [B], "converged" or
    "not_converged", and "direct" with an anchor.
    """

    weights: Array
    center: Array
    residual_gram: Array
    iterations: NDArray[np.int64]
    status: NDArray[np.str_]


def trusted_center(
    residual_gram: Array,
    noise: Array,
    anchor: int | None,
    priors: Array,
    *,
    tukey_c: float,
    eps: float,
) -> Trust:
    """Step 1: reweight the center until the weights are still.

    residual_gram: [B, K, K], R R^T around a first robust center, or around the anchor, which stays
    the center. noise: [B], the length at which round-off begins: shorter residuals count as zero.
    priors: [K], the weights of the models, which multiply those found here in the center.
    If tukey_c is so small that nobody is trusted, the center is the mean of all.
    """
    problems, count, _ = residual_gram.shape
    if anchor is not None:
        weights = np.zeros((problems, count))
        inputs = [k for k in range(count) if k != anchor]
        of_inputs = residual_gram[:, inputs][:, :, inputs]
        weights[:, inputs] = _weights(of_inputs, noise, tukey_c, eps)
        return Trust(
            weights=weights,
            center=np.broadcast_to(np.eye(count)[anchor], weights.shape),
            residual_gram=residual_gram,
            iterations=np.zeros(problems, dtype=np.int64),
            status=np.full(problems, "direct"),
        )
    center = np.zeros((problems, count))  # m = first center + sum_k center_k R_k
    weights = np.zeros((problems, count))
    iterations = np.zeros(problems, dtype=np.int64)
    moving = np.ones(problems, dtype=bool)
    while moving.any() and iterations.max() < TRUST_ROUNDS:
        new = _weights(_around(center, residual_gram), noise, tukey_c, eps)
        new[~moving] = weights[~moving]
        iterations += moving
        moving &= np.abs(new - weights).max(1) > TRUST_STEP
        weights = new
        trusted = weights.any(1, keepdims=True)
        center = priors * np.where(trusted, weights, 1.0)
        center /= center.sum(1, keepdims=True)
    return Trust(
        weights=weights,
        center=center,
        residual_gram=_around(center, residual_gram),
        iterations=iterations,
        status=np.where(moving, "not_converged", "converged"),
    )


def closed_form_strength(weights: Array, *, anchored: bool) -> Array:
    """[B] beta of step 4: 1 with an anchor, else (K - 1) / (K - 2), K the effective number.

    weights: [B, K] of the inputs that are not rejected and differ from the center. Of two inputs
    nothing can be recalled (R_1 and R_2 are opposite): 0.
    """
    kept = (weights > 0).sum(1)
    if anchored:
        return np.where(kept > 0, 1.0, 0.0)
    effective = _effective(weights)
    closed = (effective - 1) / np.maximum(effective - 2, STRENGTH_DENOMINATOR)
    return np.where(kept > 2, np.minimum(closed, STRENGTH_BOUND), 0.0)


def prior_factor(weights: Array, alpha: float | str, inputs: int) -> Array:
    """[B] alpha of step 3 around an anchor; for `auto` 2 / K times `_wider`, at most 1, K the
    effective number: twice the mean of the differences, in wide layers their sum.

    2 / K is near the best factor of task arithmetic for 3 to 5 models
    (benchmarks/recall_settings.py); where layers are wide, models that learned different things
    hardly meet, and the whole of each is wanted (benchmarks/quality/bench.py).

    weights: [B, K] of the inputs that are not rejected and differ from the anchor. inputs: of a
    linear layer; 0 for tables and vectors.
    """
    if alpha != "auto":
        return np.full(len(weights), float(alpha))
    return np.minimum(2.0 * _wider(inputs) / np.maximum(_effective(weights), 1.0), 1.0)


def ridge_over(rho: float | str, inputs: int) -> float:
    """rho of step 3; for `auto` 10 over `_wider`, at least 3.

    10 is best for layers of 64 inputs, less for those of 576 and more (the benchmarks of
    `prior_factor`, whose arguments these are).
    """
    if rho != "auto":
        return float(rho)
    return max(LEAST_AUTO_RIDGE, MOST_AUTO_RIDGE / _wider(inputs))


def _wider(inputs: int) -> float:
    """sqrt(in / 128) from 128 inputs on: in narrow layers every model uses every input."""
    return max(1.0, math.sqrt(inputs / NARROW))


def _effective(weights: Array) -> Array:
    """[B], the effective number (sum w)^2 / sum w^2 of inputs; 0 where all weigh nothing."""
    squares = (weights**2).sum(1)
    return np.asarray(weights.sum(1) ** 2 / np.maximum(squares, np.finfo(float).tiny))


def _weights(gram: Array, noise: Array, tukey_c: float, eps: float) -> Array:
    """[B, K], omega_k from the Gram matrix of the residuals."""
    distances = np.sqrt(np.maximum(np.diagonal(gram, axis1=1, axis2=2), 0.0))
    distances = np.where(distances > noise[:, None], distances, 0.0)
    weights = tukey_weights(distances, mad_scale(distances, 1, "standard")[:, None], tukey_c, eps)
    return np.where(weights < REJECTED, 0.0, weights)


def _around(center: Array, residual_gram: Array) -> Array:
    """[B, K, K] Gram matrix of R_k - sum_j center_j R_j."""
    shift = np.eye(residual_gram.shape[1]) - center[:, None, :]
    gram = shift @ residual_gram @ shift.transpose(0, 2, 1)
    return np.asarray((gram + gram.transpose(0, 2, 1)) / 2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[B], inner products of the problems."""
    return torch.bmm(a.reshape(len(a), 1, -1), b.reshape(len(b), -1, 1))[:, 0, 0]


def _on_host(values: Tensor | None) -> Array:
    return np.empty(0) if values is None else values.cpu().numpy()
