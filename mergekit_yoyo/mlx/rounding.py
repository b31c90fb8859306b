"""Better weights at the same bits: scales by search, and errors fed forward along a row.

mlx stores a weight as scale * code + bias, with a scale and a bias for each group, and takes them
from the smallest and the largest weight of the group. `searched` looks for the pair with the least
squared error. `fed_forward` (GPTQ, arXiv 2210.17323) rounds column by column and lets the columns
to come make up for the error, as the inputs' second moments say; the scales of a group are searched
when its first column is reached. What comes out is what mlx and mlx-lm read as any other.
"""

from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.linalg.lapack import dtrtri

from mergekit_yoyo.mlx.recipes import FLOAT_MODES

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of the range of a group, to start from
REFINEMENTS = 2  # least squares for scale and bias, with the codes that they give
DAMPING = 0.01  # of the mean second moment, added to each, as GPTQ has it
AT_ONCE = 2**19  # weights that are searched at once: what a processor caches

Floats = NDArray[np.float32]


# e2m1: what the codes 0 to 15 of mxfp4 stand for, in units of the group's power of two
_MXFP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_, _MXFP4_GROUP = FLOAT_MODES["mxfp4"]
_EXPONENTS = (0, -1, 1)  # beside mlx's own


@dataclass(frozen=True)
class Rounded:
    """A weight as mlx stores it.

    codes: [..., groups, group]. scales: [..., groups]. biases: as scales; None in mxfp4.
    """

    codes: mx.array
    scales: mx.array
    biases: mx.array | None

    def packed(self, bits: int) -> mx.array:
        """The codes in mlx's layout: a row is one stream of bits, the lowest first, in uint32."""
        codes = np.array(self.codes).astype(np.uint8)
        rows = codes.reshape(*codes.shape[:-2], -1)
        stream = np.unpackbits(rows[..., None], axis=-1, count=bits, bitorder="little")
        words = np.packbits(stream.reshape(*rows.shape[:-1], -1), axis=-1, bitorder="little")
        return mx.array(words.view(np.uint32))


def searched(
    weight: mx.array,
    bits: int,
    group_size: int,
    dtype: mx.Dtype,
    importance: mx.array | None = None,
) -> Rounded:
    """A weight with the scales and biases of least squared error, among those tried.

    Mlx's own are among them, so that no group gets worse. From these and from narrower ranges, at
    which the outermost weights are cut off, scale and bias are fitted to the codes that they give.

    Args:
        weight: [..., in].
        bits: of a code.
        group_size: weights that share a scale; it divides the inputs.
        dtype: of scales and biases.
        importance: [in], how much the error of an input counts; None: all the same.
    """
    shape = (*weight.shape[:-1], -1, group_size)
    grouped = weight.astype(mx.float32).reshape(shape)
    counts = mx.ones((1, group_size)) if importance is None else importance.reshape(-1, group_size)
    _, scales, biases = mx.quantize(
        weight.astype(dtype), group_size=group_size, bits=bits, mode="affine"
    )
    flat = grouped.reshape(-1, *grouped.shape[-2:])
    scales, biases = (x.reshape(len(flat), -1) for x in (scales, biases))
    step = max(1, AT_ONCE // weight.shape[-1])
    parts = [
        _fitted(
            _Best(
                flat[k : k + step], bits, dtype, counts, scales[k : k + step], biases[k : k + step]
            )
        )
        for k in range(0, len(flat), step)
    ]
    lead = grouped.shape[:-1]
    codes, scales, biases = (mx.concatenate(list(part)) for part in zip(*parts, strict=True))
    return Rounded(codes.reshape(grouped.shape), scales.reshape(lead), biases.reshape(lead))


def searched_mxfp4(weight: mx.array) -> Rounded:
    """As `searched`, for mxfp4: of three powers of two the one with the least squared error."""
    grouped = weight.astype(mx.float32).reshape(*weight.shape[:-1], -1, _MXFP4_GROUP)
    exponents: mx.array = mx.quantize(weight, mode="mxfp4")[1]
    values = mx.array((*_MXFP4, *(-value for value in _MXFP4)))
    middles = mx.array([(a + b) / 2 for a, b in pairwise(_MXFP4)])
    found: list[mx.array] = []
    for step in _EXPONENTS:
        tried = mx.clip(exponents.astype(mx.int32) + step, 0, 254)
        scale = mx.power(2.0, tried - 127)[..., None]
        scaled = grouped / scale
        size = (mx.abs(scaled)[..., None] > middles).sum(-1)
        codes = mx.where(scaled < 0, size + len(_MXFP4), size)
        error = mx.square(values[codes] * scale - grouped).sum(-1)
        new = [error, codes, tried]
        if found:
            better = error < found[0]
            masks = (better, better[..., None], better)
            new = [mx.where(m, a, b) for m, a, b in zip(masks, new, found, strict=True)]
        found = new
        mx.eval(*found)
    return Rounded(found[1], found[2].astype(mx.uint8), None)


def fed_forward(
    weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype, moments: Floats
) -> Rounded:
    """A weight whose columns make up for the rounding of those before them.

    Args: as of `searched`, but for moments: [in, in], the sum of x x^T over inputs x.
    """
    rows = np.array(weight.astype(mx.float32)).reshape(-1, weight.shape[-1])
    columns = np.ascontiguousarray(rows.T)
    upper, importance = _inverse_root(moments)
    groups = range(0, len(columns), group_size)
    codes = np.empty(columns.shape, np.uint8)
    scales, biases = [], []
    for begin in groups:
        end = begin + group_size
        fitted = searched(
            mx.array(columns[begin:end].T),
            bits,
            group_size,
            dtype,
            mx.array(importance[begin:end]),
        )
        assert fitted.biases is not None
        scales.append(fitted.scales)
        biases.append(fitted.biases)
        scale, bias = (np.array(x.astype(mx.float32))[:, 0] for x in (fitted.scales, fitted.biases))
        errors = np.empty((group_size, len(rows)), np.float32)
        for k in range(begin, end):
            codes[k] = code = _codes_of(columns[k], scale, bias, bits)
            errors[k - begin] = error = (columns[k] - (scale * code + bias)) / upper[k, k]
            columns[k + 1 : end] -= np.outer(upper[k, k + 1 : end], error)
        columns[end:] -= upper[begin:end, end:].T @ errors
    lead = (*weight.shape[:-1], len(groups))
    return Rounded(
        mx.array(codes.T).reshape(*lead, group_size),
        mx.concatenate(scales, axis=-1).reshape(lead),
        mx.concatenate(biases, axis=-1).reshape(lead),
    )


def _inverse_root(moments: Floats) -> tuple[Floats, Floats]:
    """U with U^T U the inverse of the damped moments, and how much the error of an input counts.

    U is upper, the inverse of an R with R R^T the moments: their Cholesky factor, last input first.
    """
    damped = moments.astype(np.float64)
    diagonal = np.diag_indices(len(damped))
    damping = DAMPING * damped[diagonal].mean()
    damped[diagonal] += damping if damping > 0 else 1.0
    root = cholesky(damped[::-1, ::-1], lower=True)[::-1, ::-1]
    upper, _ = dtrtri(root)
    return upper.astype(np.float32), damped[diagonal].astype(np.float32)


def _codes_of(column: Floats, scale: Floats, bias: Floats, bits: int) -> Floats:
    safe = np.where(scale == 0, 1, scale)
    return np.clip(np.rint((column - bias) / safe), 0, 2**bits - 1)


def _fitted(best: "_Best") -> tuple[mx.array, mx.array, mx.array]:
    """Codes, scales and biases with the least error among those tried."""
    weight = best.weight
    least, most = weight.min(-1), weight.max(-1)
    middle = (least + most) / 2
    for shrink in SHRINKS:
        half = (most - least) / 2 * shrink
        scale, bias = 2 * half / best.most, middle - half
        for _ in range(REFINEMENTS):
            codes = best.codes(scale, bias)
            scale, bias = _least_squares(weight, codes, best.counts, scale, bias)
            best.offer(scale, bias)
    return best.codes(best.scales, best.biases), best.scales, best.biases


class _Best:
    """The scales and biases with the least error so far, group by group of rows [R, groups, group];
    mlx's own to begin with."""

    def __init__(
        self,
        weight: mx.array,
        bits: int,
        dtype: mx.Dtype,
        counts: mx.array,
        scales: mx.array,
        biases: mx.array,
    ) -> None:
        self.weight, self.most, self.counts = weight, 2**bits - 1, counts
        self._dtype = dtype
        self.scales, self.biases = scales, biases
        self._errors = self._error(scales, biases)

    def codes(self, scales: mx.array, biases: mx.array) -> mx.array:
        """The nearest codes of each weight."""
        scale = scales.astype(mx.float32)[..., None]
        safe = mx.where(scale == 0, 1, scale)
        nearest = mx.round((self.weight - biases.astype(mx.float32)[..., None]) / safe)
        return mx.clip(nearest, 0, self.most)

    def offer(self, scales: mx.array, biases: mx.array) -> None:
        """Take these where their error, as they are stored, is less."""
        scales, biases = scales.astype(self._dtype), biases.astype(self._dtype)
        errors = self._error(scales, biases)
        better = errors < self._errors
        self.scales = mx.where(better, scales, self.scales)
        self.biases = mx.where(better, biases, self.biases)
        self._errors = mx.minimum(errors, self._errors)
        mx.eval(self.scales, self.biases, self._errors)

    def _error(self, scales: mx.array, biases: mx.array) -> mx.array:
        scale, bias = (x.astype(mx.float32)[..., None] for x in (scales, biases))
        off = self.weight - (scale * self.codes(scales, biases) + bias)
        return (self.counts * mx.square(off)).sum(-1)


def _least_squares(
    weight: mx.array, codes: mx.array, counts: mx.array, scale: mx.array, bias: mx.array
) -> tuple[mx.array, mx.array]:
    """Scale and bias that fit the weights best with these codes; as they were where all are one."""
    total = (counts * mx.ones_like(weight)).sum(-1)
    mean_code = (counts * codes).sum(-1) / total
    mean_weight = (counts * weight).sum(-1) / total
    off = codes - mean_code[..., None]
    spread = (counts * mx.square(off)).sum(-1)
    slope = (counts * off * weight).sum(-1) / mx.maximum(spread, 1e-30)
    flat = (spread == 0) | (slope == 0)
    slope = mx.where(flat, scale, slope)
    return slope, mx.where(flat, bias, mean_weight - slope * mean_code)
