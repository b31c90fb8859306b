"""Recall in float64, literal and slow, one formula a line: the oracle of the tests.

Explicit matrices, plain solves, the geometric median of `reference`. Only small tensors, please.
"""

from typing import NamedTuple

import numpy as np
from reference import EPS, geometric_median, weighted_median

REJECTED = 1e-3


class Recall(NamedTuple):
    """y, P, m; omega, beta and how much of its own residual each input has back (NaN: no residual).

    condition: of the sum of the omega_k C_k with its ridge.
    """

    merge: np.ndarray
    move: np.ndarray
    center: np.ndarray
    trust: np.ndarray
    strength: float
    recalled: np.ndarray
    condition: float


def trusted(u, prior, anchor, tukey_c):
    """omega and the mixing weights of the center, step 1."""
    K = len(u)
    others = [k for k in range(K) if k != anchor]
    m = geometric_median(u, prior) if anchor is None else u[anchor]
    omega = np.zeros(K)
    for _ in range(200):
        d = np.linalg.norm(u - m, axis=1)[others]
        scale = max(1.4826 * np.median(d), 1e-12)
        new = np.zeros(K)
        new[others] = np.maximum(0, 1 - (d / (tukey_c * scale + EPS)) ** 2) ** 2
        new[new < REJECTED] = 0
        moved, omega = np.abs(new - omega).max(), new
        if anchor is not None:
            return omega, np.eye(K)[anchor]
        m = (prior * omega) @ u / (prior @ omega)
        if moved < 1e-14:
            break
    return omega, prior * omega / (prior @ omega)


def recall(
    inputs,
    kind="linear",
    anchor=None,
    strength=None,
    ridge=None,
    prior=None,
    tukey_c=4.685,
    rescale="mean",
    weights=None,
):
    """inputs: K arrays of one shape; strength: beta, prior: alpha, and ridge: rho, None for the
    closed forms. See `fuse`."""
    shape = np.shape(inputs[0])
    given = np.ones(len(inputs))
    if weights is not None:
        of_inputs = [w for k, w in enumerate(weights) if k != anchor]
        given = np.array(weights) * len(of_inputs) / sum(of_inputs)
    x = np.stack([np.asarray(i, dtype=np.float64) for i in inputs])
    flat = x.reshape(len(x), -1)
    r = np.sqrt((flat**2).mean(1) + EPS)
    omega, center = trusted(flat / (r + EPS)[:, None], given, anchor, tukey_c)
    if rescale == "median":
        x = x * (weighted_median(r, given) / r).reshape(-1, *[1] * len(shape))
    m = np.tensordot(center, x, 1)
    R = x - m
    if kind == "transposed":
        R = R.swapaxes(1, 2)
    R = R.reshape(len(x), 1, -1) if kind == "vector" else R.reshape(len(x), R.shape[1], -1)
    squares = (R**2).sum((1, 2))
    omega, trust = given * omega, omega
    counted = [k for k in range(len(x)) if omega[k] > 0 and squares[k] > 0]

    C = []
    for k in range(len(x)):
        if k not in counted:
            C.append(None)
        elif kind == "embedding":  # over the rows
            C.append(np.diag((R[k] ** 2).sum(1) / squares[k]))
        elif kind == "vector":  # over the elements
            C.append(np.diag(R[k, 0] ** 2 / squares[k]))
        else:
            C.append(R[k].T @ R[k] / squares[k])
    if kind == "embedding":
        R = R.swapaxes(1, 2)
    wide = 1
    if kind not in ("embedding", "vector") and R.shape[2] > 128:
        wide = (R.shape[2] / 128) ** 0.5
    if ridge is None:
        ridge = 10 / wide if wide < 10 / 3 else 3
    rho = ridge / R.shape[2]
    if anchor is None:
        alpha = 0.0  # the center
    else:
        total = sum(omega[k] for k in counted)
        alone = sum(omega[k] ** 2 for k in counted)
        alpha = prior if prior is not None else 0.0
        if prior is None and counted:
            alpha = min(2 * wide * alone / total**2, 1)
    y0 = alpha * sum((omega[k] * R[k] for k in counted), np.zeros_like(R[0]))  # minus m
    top = sum((omega[k] * R[k] @ C[k] for k in counted), rho * y0)
    bottom = sum((omega[k] * C[k] for k in counted), rho * np.eye(R.shape[2]))
    P = np.linalg.solve(bottom.T, top.T).T

    w = omega[counted]
    effective = w.sum() ** 2 / (w**2).sum() if counted else 0
    if anchor is not None:
        closed_form = 1.0
    else:
        closed_form = min((effective - 1) / (effective - 2), 3.0) if len(counted) > 2 else 0.0
    beta = closed_form if strength is None or closed_form == 0 else strength
    recalled = np.full(len(x), np.nan)
    for k in counted:
        recalled[k] = np.sum((beta * P @ C[k]) * R[k]) / np.sum((R[k] @ C[k]) * R[k])
    condition = np.linalg.cond(bottom) if counted else np.nan
    if kind in ("embedding", "transposed"):
        P = P.T
    P = P.reshape(shape)
    return Recall(m + beta * P, P, m, trust, beta, recalled, condition)
