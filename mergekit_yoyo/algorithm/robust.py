"""Robust statistics of K numbers: medians, the MAD scale and Tukey's biweight (step 7)."""

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.algorithm.options import MadMedian, Rescale
from mergekit_yoyo.algorithm.tolerances import HALF_OF_WEIGHT, SCALE_FLOOR

Array = NDArray[np.float64]

MAD_TO_SIGMA = 1.4826  # the MAD of a Gaussian times this is its standard deviation


def median(values: Array, axis: int, kind: MadMedian = "standard") -> Array:
    """Median along `axis`: the mean of the two middle values for an even count, or the lower one.

    `lower` is what the authors' script takes in the two MADs of step 7.
    """
    if kind == "lower":
        middle = (values.shape[axis] - 1) // 2
        return np.asarray(np.take(np.sort(values, axis=axis), middle, axis=axis))
    return np.asarray(np.median(values, axis=axis))


def average(values: Array, priors: Array, rescale: Rescale) -> Array:
    """[B], mean or median over the inputs of values [B, K], for steps 8 and 9.

    priors: [K], the weights of the models, with mean 1.
    """
    if rescale == "median":
        return weighted_median(values, priors, axis=1)
    return np.asarray((priors * values).mean(1))


def weighted_median(values: Array, weights: Array, axis: int) -> Array:
    """Median along `axis` of values that count `weights` each; the ordinary one if all are equal.

    weights: as many as there are values along the axis, not negative. Where exactly half of the
    weight lies on either side, the mean of the two values there.
    """
    if (weights == weights[0]).all():
        return np.asarray(np.median(values, axis=axis))
    values = np.moveaxis(values, axis, -1)
    order = np.argsort(values, axis=-1, kind="stable")
    lower, upper = halfway(np.cumsum(weights[order], axis=-1))
    ordered = np.take_along_axis(values, order, -1)
    middle = [np.take_along_axis(ordered, at[..., None], -1)[..., 0] for at in (lower, upper)]
    return np.asarray((middle[0] + middle[1]) / 2)


def halfway(cumulative: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where sums of weights along the last axis reach half of the total, and where they pass it."""
    half = cumulative[..., -1:] / 2
    slack = HALF_OF_WEIGHT * half
    return (cumulative >= half - slack).argmax(-1), (cumulative > half + slack).argmax(-1)


def mad_scale(magnitudes: Array, axis: int, kind: MadMedian) -> Array:
    """Robust scale 1.4826 median |.|, floored: s_j and s_g of step 7."""
    return np.maximum(MAD_TO_SIGMA * median(magnitudes, axis, kind), SCALE_FLOOR)


def welsch_weights(magnitudes: Array, scale: Array, welsch_c: float, eps: float) -> Array:
    """Welsch's exp(-(|.| / (c s + eps))^2): 1 at the center, 1/e at c scales, never quite 0."""
    ratio = magnitudes / (welsch_c * scale + eps)
    # clipped before squaring: an outlier far away must not overflow
    return np.asarray(np.exp(-(np.minimum(ratio, 1e3) ** 2)))


def tukey_weights(magnitudes: Array, scale: Array, tukey_c: float, eps: float) -> Array:
    """Tukey's biweight max(0, 1 - (|.| / (c s + eps))^2)^2: 1 at the center, 0 beyond c scales."""
    ratio = magnitudes / (tukey_c * scale + eps)
    # clipped before squaring: an outlier far away must not overflow
    return (1.0 - np.minimum(ratio, 1.0) ** 2) ** 2
