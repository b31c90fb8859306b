"""Steps 1 to 3 in the span of the inputs: RMS, center and residuals as small matrices.

With an anchor or a geometric median everything is a linear combination of the inputs: vectors are
rows of coefficients of the inputs (of x_p and x_k - x_p, pivot p, for float64), whose Gram matrix
gives every inner product. With the coordinate-wise median the basis is m, R_1 .. R_K itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.center import geometric_median
from mergekit_yoyo.algorithm.options import Center
from mergekit_yoyo.algorithm.robust import Array
from mergekit_yoyo.algorithm.streaming import input_gram, median_gram, squared_norms
from mergekit_yoyo.algorithm.tolerances import PIVOT_RATIO, ROUND_OFF, SQUARE_ROUND_OFF


@dataclass(frozen=True)
class Span:
    """B problems in a basis of M vectors. All arrays float64 on the host.

    gram: [B, M, M] of the basis. center: [B, M] and residuals: [B, K, M], coefficients of m and
    R_k. rms, norms: [B, K], r_k and ||x_k||. unit_scale: [B, K], u_k = unit_scale_k x_k. priors:
    [K], the weights of the models, with mean 1.
    center_weights: [B, K], m = sum_k center_weights_k u_k, or NaN. noise: [B], the singular value
    of R at which round-off begins. around_median: the basis is m, R_1 .. R_K, and m no combination
    of the inputs. iterations, status: [B], of the geometric median.
    """

    gram: Array
    center: Array
    residuals: Array
    rms: Array
    norms: Array
    unit_scale: Array
    priors: Array
    center_weights: Array
    noise: Array
    around_median: bool
    iterations: NDArray[np.int64]
    status: NDArray[np.str_]

    @property
    def residual_gram(self) -> Array:
        """[B, K, K], R R^T."""
        return _inner(self.residuals, self.gram)

    def norm(self, vectors: Array) -> Array:
        """[B], L2 norms of vectors given by coefficients [B, M]; their round-off where larger."""
        squares = _inner(vectors[:, None], self.gram)[:, 0, 0]
        return np.sqrt(np.maximum(squares, _square_noise(vectors[:, None], self.gram)[:, 0]))

    def own_residual_squares(self, scale: Array, weights: Array) -> Array:
        """[B, K], ||scale_k x_k - sum_j weights_j scale_j x_j||^2, zero where it is round-off.

        scale, weights: [B, K].
        """
        units = self.center[:, None] + self.residuals
        unit = np.where(self.unit_scale > 0, self.unit_scale, np.inf)  # lost ones count as zero
        inputs = units * (scale / unit)[:, :, None]
        rows = inputs - np.einsum("bk,bkm->bm", weights, inputs)[:, None]
        squares = np.einsum("bkm,bmn,bkn->bk", rows, self.gram, rows)
        # what was added up sets the round-off, not what is left of it
        entered = np.abs(inputs) + np.einsum("bk,bkm->bm", weights, np.abs(inputs))[:, None]
        noise = np.maximum(_square_noise(entered, self.gram), np.finfo(float).tiny)
        return np.where(squares > noise, squares, 0.0)


def span_of(
    tensors: Sequence[Tensor], center: Center, anchor: int | None, eps: float, priors: Array
) -> Span | None:
    """Stream the inputs [B, ...] and return their span, or None where they are not finite.

    priors: [K], the weights of the models, with mean 1. Of two inputs both medians are their
    weighted mean, which is a combination of them.
    """
    if center == "coordinate_median" and len(tensors) > 2:
        return _around_median(tensors, eps, priors)
    return _of_inputs(tensors, anchor, eps, priors)


def _of_inputs(
    tensors: Sequence[Tensor], anchor: int | None, eps: float, priors: Array
) -> Span | None:
    basis = _basis_of(tensors)
    if basis is None:
        return None
    # step 1: r_k, and u_k = unit_scale_k x_k; an input lost in the round-off of the pivot counts
    # as zero, not scaled up to unit size
    norms, rms, unit_scale = _scales(np.where(basis.lost, 0.0, basis.squares), tensors[0], eps)
    unit_scale = np.where(basis.lost, 0.0, unit_scale)
    units = unit_scale[:, :, None] * basis.inputs

    # step 2: m = sum_k weights_k u_k
    weights, iterations, status = _center_of(units, basis.gram, anchor, priors)
    center = np.einsum("bk,bkm->bm", weights, units)

    # step 3: R_k = u_k - m
    residuals = units - center[:, None]

    return Span(
        gram=basis.gram,
        center=center,
        residuals=residuals,
        rms=rms,
        norms=norms,
        unit_scale=unit_scale,
        priors=priors,
        center_weights=weights,
        noise=ROUND_OFF * _largest_entered(units, basis),
        around_median=False,
        iterations=iterations,
        status=status,
    )


def _center_of(
    units: Array, gram: Array, anchor: int | None, priors: Array
) -> tuple[Array, NDArray[np.int64], NDArray[np.str_]]:
    """Step 2: weights [B, K] of the anchor or the geometric median, and how it was found."""
    problems, count, _ = units.shape
    if anchor is not None:
        weights = np.broadcast_to(np.eye(count)[anchor], (problems, count))
        return weights, np.zeros(problems, dtype=np.int64), np.full(problems, "direct")
    spread = _inner(units - units.mean(1, keepdims=True), gram)
    eigenvalues, vectors = np.linalg.eigh(spread)
    points = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))[:, None, :]
    found = geometric_median(points, priors)
    return found.weights, found.iterations, found.status


def _around_median(tensors: Sequence[Tensor], eps: float, priors: Array) -> Span | None:
    count = len(tensors)
    # the scales of step 1 stay on the device, so that it is waited for only once
    squares = squared_norms(tensors)
    factors = 1.0 / ((squares / prod(tensors[0].shape[1:]) + eps).sqrt() + eps)
    products = median_gram(tensors, factors, priors).flatten(1)
    fetched = torch.cat((products, squares), dim=1).cpu().numpy()
    if not np.isfinite(fetched).all():
        return None
    gram = fetched[:, :-count].reshape(-1, count + 1, count + 1)
    norms, rms, unit_scale = _scales(fetched[:, -count:], tensors[0], eps)
    largest = _diagonal(gram)[:, 1:].max(1)
    basis = np.broadcast_to(np.eye(count + 1), (len(gram), count + 1, count + 1))
    nothing = np.full((len(gram), count), np.nan)
    return Span(
        gram=gram,
        center=basis[:, 0],
        residuals=basis[:, 1:],
        rms=rms,
        norms=norms,
        unit_scale=unit_scale,
        priors=priors,
        center_weights=nothing,
        noise=ROUND_OFF * np.sqrt(largest),
        around_median=True,
        iterations=np.zeros(len(gram), dtype=np.int64),
        status=np.full(len(gram), "direct"),
    )


def _scales(squares: Array, first: Tensor, eps: float) -> tuple[Array, Array, Array]:
    """Step 1: ||x_k||, r_k = sqrt(mean(x_k^2) + eps) and the factor 1 / (r_k + eps)."""
    squares = np.maximum(squares, 0.0)
    rms = np.sqrt(squares / prod(first.shape[1:]) + eps)
    return np.sqrt(squares), rms, 1.0 / (rms + eps)


@dataclass(frozen=True)
class _Basis:
    """gram: [B, K, K]. inputs: [K, K], their coefficients. squares: [B, K], ||x_k||^2. lost: which
    of them are round-off. pivot: p, where the basis is x_p and the x_k - x_p."""

    gram: Array
    inputs: Array
    squares: Array
    lost: NDArray[np.bool_]
    pivot: int | None


def _basis_of(tensors: Sequence[Tensor]) -> _Basis | None:
    """The inputs as their own basis; for float64 ones a pivot and the differences from it, since
    distances cancel in a Gram matrix of the inputs. None if a value is not finite."""
    pivot = 0 if any(x.dtype == torch.float64 for x in tensors) else None
    while True:
        gram = input_gram(tensors, pivot).cpu().numpy()
        if not np.isfinite(gram).all():
            return None
        inputs = np.eye(len(tensors))
        if pivot is not None:
            inputs[:, pivot] = 1.0  # x_k = x_p + (x_k - x_p)
        squares = np.diagonal(inputs @ gram @ inputs.T, axis1=1, axis2=2)
        noise = _square_noise(np.broadcast_to(inputs, gram.shape), gram)
        better = pivot
        if pivot == 0:  # the first try
            better = _better_pivot(np.sqrt(np.maximum(squares, noise)), pivot)
        if better == pivot:
            return _Basis(gram, inputs, squares, squares <= noise, pivot)
        pivot = better


def _better_pivot(norms: Array, pivot: int) -> int:
    """The pivot, or the shortest input where the pivot is far longer than that.

    Differences from an input of wrong scale are nothing but that input: the small ones between
    the others drown in their products. No fine-tune goes the second way, which is one pass more.
    """
    shortest = np.maximum(norms.min(1, keepdims=True), np.finfo(float).tiny ** 0.5)
    ratio = norms / shortest
    return pivot if ratio[:, pivot].max() <= PIVOT_RATIO else int(ratio.max(0).argmin())


def _largest_entered(units: Array, basis: _Basis) -> Array:
    """[B], the largest norm that entered the differences of the u_k: it sets their round-off."""
    p = basis.pivot
    entered = units if p is None else units - units[:, p : p + 1]
    return np.asarray(np.sqrt((entered**2 * _diagonal(basis.gram)[:, None]).max((1, 2))))


def _square_noise(rows: Array, gram: Array) -> Array:
    """[B, R], round-off of the squared norms of vectors given by coefficients [B, R, M]."""
    return np.asarray(SQUARE_ROUND_OFF * np.einsum("brm,bm->br", rows**2, _diagonal(gram)))


def _inner(rows: Array, gram: Array) -> Array:
    product = rows @ gram @ rows.transpose(0, 2, 1)
    return np.asarray((product + product.transpose(0, 2, 1)) / 2)


def _diagonal(gram: Array) -> Array:
    return np.diagonal(gram, axis1=1, axis2=2)
