"""Step 1 of recall: a center that broken inputs cannot move, and how far to trust each input.

Everything is known from the K x K Gram matrix of residuals around any other center. All arrays are
float64 with the problems along the first axis (B).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.algorithm.robust import Array, mad_scale, tukey_weights
from mergekit_yoyo.rejection import REJECTED

STILL = 1e-12  # the weights have settled
MAX_ROUNDS = 100
MAX_STRENGTH = 3.0  # of the closed form


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
    residual_gram: Array, noise: Array, anchor: int | None, *, tukey_c: float, eps: float
) -> Trust:
    """Reweight the center until the weights are still.

    residual_gram: [B, K, K], R R^T around a first robust center, or around the anchor, which stays
    the center. noise: [B], the length at which round-off begins: shorter residuals count as zero.
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
    while moving.any() and iterations.max() < MAX_ROUNDS:
        new = _weights(_around(center, residual_gram), noise, tukey_c, eps)
        new[~moving] = weights[~moving]
        iterations += moving
        moving &= np.abs(new - weights).max(1) > STILL
        weights = new
        total = weights.sum(1, keepdims=True)
        center = np.where(total > 0, weights, 1.0) / np.where(total > 0, total, count)
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
    effective = weights.sum(1) ** 2 / np.maximum((weights**2).sum(1), np.finfo(float).tiny)
    strength = np.minimum((effective - 1) / np.maximum(effective - 2, 1e-3), MAX_STRENGTH)
    return np.where(kept > 2, strength, 0.0)


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
