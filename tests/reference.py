"""The method in float64, literal and slow, one formula a line: the oracle of the tests.

Independent of the package: explicit D-dimensional vectors, a plain SVD, Weiszfeld's iteration on
the vectors themselves. Only small tensors, please.
"""

import numpy as np

EPS, LAMBDA_MAX = 1e-8, 10.0


def lower_median(values, axis):
    return np.take(np.sort(values, axis=axis), (values.shape[axis] - 1) // 2, axis=axis)


def weiszfeld(u):
    """Geometric median by the plain iteration, with Vardi and Zhang's step, from the mean."""
    if len(u) == 2:
        return u.mean(0)
    for k in range(len(u)):  # a data point is the optimum if the others cannot pull it away
        far = np.array([x - u[k] for x in u if np.linalg.norm(x - u[k]) > 0])
        if len(far) == 0:
            return u[k]
        pull = sum(d / np.linalg.norm(d) for d in far)
        if np.linalg.norm(pull) <= len(u) - len(far):
            return u[k]
    y = u.mean(0)
    for _ in range(200_000):
        d = np.linalg.norm(u - y, axis=1)
        if (d == 0).any():
            k = int(np.argmin(d))
            far = [x for i, x in enumerate(u) if d[i] > 0]
            pull = sum((x - y) / np.linalg.norm(x - y) for x in far)
            y = y + 1e-6 * np.linalg.norm(far[0] - u[k]) * pull / np.linalg.norm(pull)
            continue
        new = (u / d[:, None]).sum(0) / (1 / d).sum()
        if np.linalg.norm(new - y) <= 1e-14 * np.linalg.norm(u - u[0], axis=1).max():
            return new
        y = new
    return y


def yoyo_fusion(
    inputs,
    center="geometric_median",
    anchor=0,
    rescale="mean",
    mad_median="standard",
    tukey_c=4.685,
    max_scale=LAMBDA_MAX,
):
    """inputs: K arrays of one shape. Returns the float64 merge."""
    shape = np.shape(inputs[0])
    x = np.stack([np.asarray(i, dtype=np.float64).ravel() for i in inputs])
    K, D = x.shape
    mad = np.median if mad_median == "standard" else lower_median
    average = np.mean if rescale == "mean" else np.median

    r = np.sqrt((x**2).mean(1) + EPS)
    u = x / (r + EPS)[:, None]
    if center == "anchor":
        m = u[anchor]
    elif center == "coordinate_median":
        m = np.median(u, axis=0)
    else:
        m = weiszfeld(u)
    R = u - m
    if np.linalg.norm(R, axis=1).max() < 1e-7:
        y = m.copy()
    else:
        Q, s, _ = np.linalg.svd(R.T, full_matrices=False)
        rank = int((s > s[0] * max(K, D) * 2.0**-52).sum())
        kept = min(K - 1, rank)
        Q = Q[:, :kept]
        p = (s[:kept] ** 2).sum() / ((s**2).sum() + EPS)
        lam = min(1 / (p + EPS), max_scale)
        Z = R @ Q
        length = np.linalg.norm(Z, axis=1)
        s_j = np.maximum(1.4826 * mad(np.abs(Z), axis=0), 1e-12)
        s_g = max(1.4826 * mad(length, axis=0), 1e-12)
        w_kj = np.maximum(0, 1 - (np.abs(Z) / (tukey_c * s_j + EPS)) ** 2) ** 2
        w_k = np.maximum(0, 1 - (length / (tukey_c * s_g + EPS)) ** 2) ** 2
        W = w_kj * w_k[:, None]
        z = (W * Z).sum(0) / (W.sum(0) + EPS)
        y = m + lam * Q @ z
    y = y * average(r)
    y = y * average(np.linalg.norm(x, axis=1)) / (np.linalg.norm(y) + EPS)
    return y.reshape(shape)
