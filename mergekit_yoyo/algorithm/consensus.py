"""Steps 3 to 7 on Gram matrices: subspace of the residuals, energy, Tukey-weighted mean.

With H = R R^T = V S^2 V^T (K x K) the thin SVD R^T = Q S V^T of step 5 gives Z = R Q' = V' S',
and the update Q' z = R^T V' S'^-1 z: everything is known as K coefficients of the residuals.
All arrays are float64 with the problems along the first axis (B).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.algorithm.options import MadMedian
from mergekit_yoyo.algorithm.robust import Array, mad_scale, tukey_weights

NO_RESIDUAL = 1e-7  # step 4: below this largest residual norm the center is the result


@dataclass(frozen=True)
class Consensus:
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


def consensus(
    residual_gram: Array,
    noise: Array,
    *,
    mad_median: MadMedian,
    tukey_c: float,
    max_scale: float,
    eps: float,
) -> Consensus:
    """Steps 4 to 7 for B problems.

    residual_gram: [B, K, K], H = R R^T. noise: [B], the singular value at which round-off begins:
    directions at or below it carry nothing and count as rank loss.
    """
    k = residual_gram.shape[1]
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
    energy_scale = np.minimum(1.0 / (energy + eps), max_scale)

    # step 7
    z = np.where(kept[:, None, :], vectors * singular[:, None, :], 0.0)
    distances = np.linalg.norm(z, axis=2)
    direction_scales = mad_scale(np.abs(z), 1, mad_median)
    global_scale = mad_scale(distances, 1, mad_median)
    by_direction = tukey_weights(np.abs(z), direction_scales[:, None, :], tukey_c, eps)
    by_input = tukey_weights(distances, global_scale[:, None], tukey_c, eps)
    w = by_direction * by_input[:, :, None]
    mean_z = (w * z).sum(1) / (w.sum(1) + eps)
    along = np.where(kept, mean_z / np.where(kept, singular, 1.0), 0.0)
    update = energy_scale[:, None] * np.einsum("bkj,bj->bk", vectors, along)

    share = np.where(kept, singular**2, 0.0)
    share_total = share.sum(1, keepdims=True)
    weights = np.einsum("bkj,bj->bk", w, share) / np.where(share_total > 0, share_total, 1.0)
    return Consensus(
        update=update,
        weights=np.where(share_total > 0, weights, 1.0),
        residual_norms=residual_norms,
        rank=kept.sum(1),
        energy=np.where(has_residual, energy, 1.0),
        energy_scale=np.where(has_residual, energy_scale, 1.0),
        direction_scales=np.where(kept, direction_scales, np.nan),
        global_scale=global_scale,
    )
