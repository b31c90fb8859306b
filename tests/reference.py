"""The method in float64, literal and slow, one formula a line: the oracle of the tests.

Independent of the package: explicit D-dimensional vectors, a plain SVD, Weiszfeld's iteration on
the vectors themselves. Only small tensors, please.
"""

from typing import NamedTuple

import numpy as np

EPS, LAMBDA_MAX = 1e-8, 10.0


class Reference(NamedTuple):
    """The float64 merge, and what happened on the way.

    r', p, lambda and ||R_k|| (zeros where step 4 ends it); the residuals R; what each input weighed
    (the mean of its W_kj, weighted by the energy of direction j).
    """

    merge: np.ndarray
    rank: int
    energy: float
    energy_scale: float
    residual_norms: np.ndarray
    residuals: np.ndarray
    weights: np.ndarray


def lower_median(values, axis):
    return np.take(np.sort(values, axis=axis), (values.shape[axis] - 1) // 2, axis=axis)


def weighted_median(values, w):
    """The value below and above which no more than half of the weight lies; of two, their mean."""
    half = np.sum(w) / 2
    fits = [
        v
        for v in values
        if sum(w[values < v]) <= half * (1 + 1e-12) and sum(w[values > v]) <= half * (1 + 1e-12)
    ]
    return (min(fits) + max(fits)) / 2


def geometric_median(u, w=None):
    """argmin_y sum_k w_k ||u_k - y|| by the plain iteration, with Vardi and Zhang's step."""
    w = np.ones(len(u)) if w is None else w
    if len(u) == 2:
        return w @ u / w.sum()
    centered = u - u.mean(0)
    _, singular, directions = np.linalg.svd(centered, full_matrices=False)
    if len(singular) == 1 or singular[1] <= 1e-10 * singular[0]:
        place = centered @ directions[0]  # on one line: the ordinary median
        return u.mean(0) + weighted_median(place, w) * directions[0]
    y, spread = u.mean(0), np.linalg.norm(centered, axis=1).max()
    for k in range(len(u)):  # a data point is the optimum if the others cannot pull it away
        here = np.linalg.norm(u - u[k], axis=1) == 0
        if np.linalg.norm(pull_at(u, w, u[k])) <= w[here].sum():
            return u[k]
    for _ in range(20_000):
        d = np.linalg.norm(u - y, axis=1)
        far = d > 0
        step_to = (w[far] / d[far]) @ u[far] / (w[far] / d[far]).sum()
        if not far.all():  # on a data point that is not the optimum
            stay = w[~far].sum() / np.linalg.norm(pull_at(u, w, y))
            step_to = (1 - stay) * step_to + stay * y
        step, y = np.linalg.norm(step_to - y), step_to
        if step <= max(1e-14 * spread, 4e-16 * np.linalg.norm(y)):
            break
    return y


def pull_at(u, w, y):
    """Sum of the unit vectors from y to the points times their weights, but for those at y."""
    d = np.linalg.norm(u - y, axis=1)
    return (w[d > 0] / d[d > 0]) @ (u - y)[d > 0]


def yoyo_fusion(
    inputs,
    center="geometric_median",
    anchor=None,
    rescale="mean",
    mad_median="standard",
    tukey_c=4.685,
    max_scale=LAMBDA_MAX,
    weights=None,
    weight_function="tukey",
    welsch_c=2.985,
    deviations="center",
    rank_by="full",
    scale_by="energy",
    matrix_boost=False,
    sign_alignment=None,
):
    """inputs: K >= 2 arrays of one shape, with the options of `fuse`.

    sign_alignment: the input whose signs all get. Returns a `Reference`.
    """
    prior = np.ones(len(inputs)) if weights is None else np.array(weights, dtype=float)
    kept = [k for k in range(len(inputs)) if prior[k] > 0 or k == anchor]
    inputs, prior = [inputs[k] for k in kept], prior[kept]
    anchor = None if anchor is None else kept.index(anchor)
    votes = prior > 0
    if sign_alignment is not None:
        signs = np.sign(np.asarray(inputs[sign_alignment], dtype=np.float64))
        inputs = [np.where(signs == 0, x, np.abs(x) * signs) for x in inputs]

    def weigh(size, scale):
        if weight_function == "welsch":
            return np.exp(-((size / (welsch_c * scale + EPS)) ** 2))
        return np.maximum(0, 1 - (size / (tukey_c * scale + EPS)) ** 2) ** 2

    shape = np.shape(inputs[0])
    x = np.stack([np.asarray(i, dtype=np.float64).ravel() for i in inputs])
    K, D = x.shape
    mad = np.median if mad_median == "standard" else lower_median

    def average(values):
        return prior @ values / prior.sum() if rescale == "mean" else weighted_median(values, prior)

    r = np.sqrt((x**2).mean(1) + EPS)
    u = x / (r + EPS)[:, None]
    if center == "anchor":
        m = u[anchor]
    elif center == "coordinate_median":
        if K == 2:
            m = prior @ u / prior.sum()
        else:
            m = np.array([weighted_median(column, prior) for column in u.T])
    else:
        m = geometric_median(u, prior)
    R = u - m
    residual_norms = np.linalg.norm(R, axis=1)
    if residual_norms.max() < 1e-7:
        y, kept, p, lam, weights = m.copy(), 0, 0.0, 0.0, np.ones(K)
    else:
        Q, s, _ = np.linalg.svd(R.T, full_matrices=False)
        rank = int((s > s[0] * max(K, D) * 2.0**-52).sum())
        wanted = K - 1
        if rank_by == "principal":
            wanted = min(max(round((s**2).sum() ** 2 / (s**4).sum()), 1), K)
        elif rank_by == "noise":
            variance = np.median(s[: K - 1] ** 2) / D
            wanted = int((s[: K - 1] ** 2 > variance * D * (1 + (K / D) ** 0.5) ** 2).sum())
        kept = min(wanted, rank)
        Q = Q[:, :kept]
        p = (s[:kept] ** 2).sum() / ((s**2).sum() + EPS)
        lam = min((1 / (p + EPS)) ** (0.5 if scale_by == "root" else 1), max_scale)
        Z = R @ Q
        off = Z - np.median(Z[votes], axis=0) if deviations == "median" else Z
        length = np.linalg.norm(off, axis=1)
        s_j = np.maximum(1.4826 * mad(np.abs(off[votes]), axis=0), 1e-12)
        s_g = max(1.4826 * mad(length[votes], axis=0), 1e-12)
        w_kj = weigh(np.abs(off), s_j)
        w_k = weigh(length, s_g)
        W = w_kj * w_k[:, None]
        z = prior @ (W * Z) / (prior @ W / prior.mean() + EPS) / prior.mean()
        if K == 2 and anchor is None and deviations == "center":
            z = 0 * z  # neither can outvote the other
        update = lam * Q @ z
        if matrix_boost and len(shape) == 2:
            left, singular, right = np.linalg.svd(update.reshape(shape), full_matrices=False)
            update = (left @ (singular.max() * right)).ravel()
        y = m + update
        weights = W @ s[:kept] ** 2 / (s[:kept] ** 2).sum() if kept else np.ones(K)
    y = y * average(r)
    y = y * average(np.linalg.norm(x, axis=1)) / (np.linalg.norm(y) + EPS)
    return Reference(y.reshape(shape), kept, p, lam, residual_norms, R, weights)
