"""Step 2: the robust center of K points, as mixing weights (geometric median) or per coordinate.

The geometric median works on K points in at most K coordinates, whatever the size D of the
tensors they stand for: distances are all that it needs. Many problems (the experts of a packed
tensor) are solved at once along the first axis.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.algorithm.robust import Array, halfway
from mergekit_yoyo.algorithm.tolerances import (
    MEDIAN_ITERATIONS,
    MEDIAN_STEP,
    NEWTON_RIDGE,
    SAME_POINT,
)

NEWTON_SIZES = 0.25 ** np.arange(8)  # near two pairs of points the whole step overshoots


@dataclass(frozen=True)
class GeometricMedian:
    """Where the iteration ended, per problem (first axis B).

    weights: [B, K], sum 1; the median is sum_k weights_k p_k.
    iterations: [B]; 0 where no iteration was needed.
    status: [B] of "converged", "data_point" (the median is one of the points), "midpoint" (all
        points on one line: the middle point, or the midpoint of the two middle ones) or
        "not_converged".
    """

    weights: Array
    iterations: NDArray[np.int64]
    status: NDArray[np.str_]


def geometric_median(points: Array, priors: Array | None = None) -> GeometricMedian:
    """argmin_y sum_k w_k ||p_k - y|| of K points each, converged to a relative 1e-12.

    points: [B, K, R] float64. priors: [K], w_k above 0 with mean 1, or None for 1 each.

    The points themselves are tested first (Kuhn's condition), and points on one line have their
    ordinary median, two of them the weighted mean (all between them would do, were they equal);
    the rest is Weiszfeld's iteration with the step of Vardi and Zhang (PNAS 97, 2000) at a data
    point, replaced by Newton's step, damped if need be, wherever that one descends further.
    """
    w = np.ones(points.shape[1]) if priors is None else priors
    weights = np.full(points.shape[:2], 1.0 / points.shape[1])
    iterations = np.zeros(len(points), dtype=np.int64)
    status = np.full(len(points), "not_converged", dtype="<U13")
    spread = np.linalg.norm(points - points.mean(1, keepdims=True), axis=2).max(1)

    on_line = _on_one_line(points, spread)
    weights[on_line] = _median_on_line(points[on_line], w)
    status[on_line] = "midpoint"

    at_point = _optimal_data_point(points, w, spread) * ~on_line[:, None]
    hit = at_point.any(1)
    weights[hit] = at_point[hit] / at_point[hit].sum(1, keepdims=True)
    status[hit] = "data_point"

    active = np.flatnonzero(~(on_line | hit))
    y = points.mean(1)
    for iteration in range(1, MEDIAN_ITERATIONS + 1):
        if not len(active):
            break
        step_from = y[active]
        y[active], weights[active] = _descend(points[active], w, step_from, spread[active])
        iterations[active] = iteration
        moved = np.linalg.norm(y[active] - step_from, axis=1)
        done = moved <= MEDIAN_STEP * spread[active]
        status[active[done]] = "converged"
        active = active[~done]
    return GeometricMedian(weights, iterations, status)


def _on_one_line(points: Array, spread: Array) -> NDArray[np.bool_]:
    singular = np.linalg.svd(points - points.mean(1, keepdims=True), compute_uv=False)
    second = singular[:, 1] if singular.shape[1] > 1 else np.zeros(len(points))
    return np.asarray(second <= SAME_POINT * np.maximum(spread, np.finfo(float).tiny))


def _median_on_line(points: Array, w: Array) -> Array:
    """Weights of the ordinary median of points on a line: one middle point, or two halves."""
    count, k = points.shape[:2]
    if k == 2:
        return np.broadcast_to(w / w.sum(), (count, k))
    centered = points - points.mean(1, keepdims=True)
    direction = np.linalg.svd(centered, full_matrices=False)[2][:, :1] if k > 1 else points[:, :1]
    order = np.argsort((centered * direction).sum(2), axis=1, kind="stable")
    weights = np.zeros((count, k))
    for middle in halfway(np.cumsum(w[order], axis=1)):
        weights[np.arange(count), order[np.arange(count), middle]] += 0.5
    return weights


def _optimal_data_point(points: Array, w: Array, spread: Array) -> NDArray[np.bool_]:
    """[B, K]: the points at which the pull of all others is no more than what is there."""
    difference = points[:, None, :, :] - points[:, :, None, :]
    distance = np.linalg.norm(difference, axis=3)
    same = distance <= SAME_POINT * spread[:, None, None]
    unit = np.where(same[..., None], 0.0, difference / np.where(same, 1.0, distance)[..., None])
    pull = np.linalg.norm((w[:, None] * unit).sum(2), axis=2)
    return np.asarray(pull <= (w * same).sum(2))


def _descend(points: Array, w: Array, y: Array, spread: Array) -> tuple[Array, Array]:
    """One step from y, the best of Newton's (whole or damped) and Weiszfeld's; weights w/d at y."""
    difference = points - y[:, None]
    distance = np.linalg.norm(difference, axis=2)
    near = distance <= MEDIAN_STEP * spread[:, None]
    inverse = np.where(near, 0.0, w / np.where(near, 1.0, distance))
    pull = (inverse[..., None] * difference).sum(1)
    pull_norm = np.linalg.norm(pull, axis=1)
    # Vardi and Zhang: at a data point only the part of the pull beyond its multiplicity moves y
    stay = np.minimum(1.0, (w * near).sum(1) / np.maximum(pull_norm, np.finfo(float).tiny))
    weiszfeld = y + ((1.0 - stay) / inverse.sum(1))[:, None] * pull

    unit = difference / np.where(near, 1.0, distance)[..., None]
    # the ridge keeps points that are nearly on a line solvable
    hessian = inverse.sum(1)[:, None, None] * ((1.0 + NEWTON_RIDGE) * np.eye(points.shape[2]))
    hessian = hessian - np.einsum("bk,bki,bkj->bij", inverse, unit, unit)
    newton = (1.0 - stay)[:, None] * np.linalg.solve(hessian, pull[..., None])[..., 0]

    steps = np.stack([*(y + size * newton for size in NEWTON_SIZES), weiszfeld])
    cost = (w * np.linalg.norm(points - steps[:, :, None], axis=3)).sum(2)
    # the first that is best but for round-off, which must not choose a short step
    chosen = (cost <= cost.min(0) * (1.0 + NEWTON_RIDGE)).argmax(0)
    return steps[chosen, np.arange(len(y))], inverse / inverse.sum(1, keepdims=True)


@lru_cache
def median_network(k: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Comparators that bring the middle one or two of k values to their sorted places.

    Each is (i, j, keep_min, keep_max): place i gets the smaller and place j the larger of the two,
    where kept. Batcher's odd-even merge sort, pruned from the outputs backward to what the
    median needs: 3 values cost 4 minima and maxima, 8 cost 28.
    """
    comparators = []
    p = 1
    while p < k:
        q = p
        while q >= 1:
            for start in range(q % p, k - q, 2 * q):
                comparators += [
                    (i, i + q)
                    for i in range(start, min(start + q, k - q))
                    if i // (2 * p) == (i + q) // (2 * p)
                ]
            q //= 2
        p *= 2
    needed = {(k - 1) // 2, k // 2}
    kept = []
    for i, j in reversed(comparators):
        keep_min, keep_max = i in needed, j in needed
        if keep_min or keep_max:
            kept.append((i, j, keep_min, keep_max))
            needed |= {i, j}
    return tuple(reversed(kept))
