"""Scales: from a number to its place between the first and the last color of a palette.

The full scale of a quantity is the same in every report, so that a color always means the same. It
shows little of numbers that lie close together: the stretched one spans those that there are, and
its legend says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10, sqrt

from mergekit_yoyo.record.statistics import Array

UNRELATED = sqrt(2)  # RMS distance of two models that have nothing in common


@dataclass(frozen=True)
class Scale:
    """low, high: the numbers with the first and the last color; what is beyond has the same. root:
    colors go by the square root, so that small numbers differ. ticks: numbers on the legend."""

    low: float
    high: float
    ticks: tuple[float, ...]
    root: bool = False
    stretched: bool = False

    def share(self, value: float) -> float:
        """The place of a value, from 0 to 1."""
        part = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return sqrt(part) if self.root else part


OF_WEIGHTS = Scale(0.0, 1.0, (0.0, 0.5, 1.0))
OF_DISTANCES = Scale(0.0, UNRELATED, (0.0, 0.1, 0.5, UNRELATED), root=True)


def stretched(values: Array) -> Scale | None:
    """The scale that spans `values`, its ends rounded outwards; None if they are all one."""
    if not values.size or values.max() - values.min() < 1e-6:
        return None
    low, high = float(values.min()), float(values.max())
    step = _step(high - low)
    low, high = _round(floor(low / step) * step), _round(ceil(high / step) * step)
    return Scale(low, high, (low, _round((low + high) / 2), high), stretched=True)


def around_zero(values: Array) -> Scale:
    """The scale of changes: as far below zero as above."""
    largest = float(abs(values).max()) if values.size else 0.0
    step = _step(2 * largest) if largest else 1.0
    top = _round(ceil(largest / step) * step) if largest else 1.0
    return Scale(-top, top, (-top, 0.0, top))


def from_zero(values: Array) -> Scale:
    """From zero to one, or as far as there are values."""
    low = min(0.0, floor(float(values.min()))) if values.size else 0.0
    high = max(1.0, ceil(2 * float(values.max())) / 2) if values.size else 1.0
    return Scale(low, high, tuple(dict.fromkeys((low, 0.0, high))))


def _step(span: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is a tenth of the span at most."""
    power = 10.0 ** floor(log10(span / 10))
    fitting: Sequence[float] = [k * power for k in (1, 2, 5) if k * power <= span / 10]
    return fitting[-1]


def _round(value: float) -> float:
    return float(f"{value:.6g}")
