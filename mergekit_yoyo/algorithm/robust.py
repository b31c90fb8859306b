"""Robust statistics of K numbers: medians, the MAD scale and Tukey's biweight (step 7)."""

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.algorithm.options import MadMedian
from mergekit_yoyo.algorithm.tolerances import SCALE_FLOOR

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


def mad_scale(magnitudes: Array, axis: int, kind: MadMedian) -> Array:
    """Robust scale 1.4826 median |.|, floored: s_j and s_g of step 7."""
    return np.maximum(MAD_TO_SIGMA * median(magnitudes, axis, kind), SCALE_FLOOR)


def tukey_weights(magnitudes: Array, scale: Array, tukey_c: float, eps: float) -> Array:
    """Tukey's biweight max(0, 1 - (|.| / (c s + eps))^2)^2: 1 at the center, 0 beyond c scales."""
    ratio = magnitudes / (tukey_c * scale + eps)
    # clipped before squaring: an outlier far away must not overflow
    return (1.0 - np.minimum(ratio, 1.0) ** 2) ** 2
