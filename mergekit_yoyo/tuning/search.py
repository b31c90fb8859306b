"""The search for the lowest mean: along one option bracketed and fitted, over several by COBYQA.

Every candidate is measured on the same text, so that differences are far surer than the figures
themselves, and smooth in the options.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mergekit_yoyo.tuning.knobs import Knob, Setting, knob_of
from mergekit_yoyo.tuning.measured import Figure, Measured

STEPS = 10  # of a range, at first
GROWTH = 1.6
REFINEMENTS = 3
CLOSE = 0.01  # of a range: what is nearer is the same
DRAWS = 200
ROUNDS = 2
OVER_SEVERAL = 12  # candidates for each of several options moved at once, at most
FLAT = 1e-9  # nats: an option that changes less has no effect


class Exhausted(Exception):  # noqa: N818  # no error: the budget is spent
    """There is nothing left to measure with."""


Measure = Callable[[Setting], Measured]


@dataclass
class Line:
    """What was measured along one option, in order of its value. best: where a parabola through
    the lowest points has its minimum, with its standard error; None where none was fitted."""

    key: str
    points: list[tuple[float, Measured]] = field(default_factory=list)
    best: Figure | None = None

    @property
    def lowest(self) -> tuple[float, Measured]:
        """The lowest point measured."""
        return min(self.points, key=lambda point: point[1].figure.value)


@dataclass
class Found:
    """The best that was measured, all lines along which it was searched, and whether the budget
    ended the search."""

    best: Measured
    lines: list[Line] = field(default_factory=list)
    exhausted: bool = False

    def take(self, measured: Measured) -> None:
        """A candidate; one that is lower by more than its error is the best from now on."""
        if is_lower(measured, self.best):
            self.best = measured


def is_lower(one: Measured, other: Measured) -> bool:
    """Whether one stands below another by more than the standard error of their difference: what
    gains less is not worth moving away from what is there."""
    if not math.isfinite(other.figure.value):
        return math.isfinite(one.figure.value)
    gained = other.above(one)
    return gained.value > max(gained.error, FLAT)


def search(
    given: Measured, knobs: Mapping[str, Knob], measure: Measure, fixed: Mapping[str, object]
) -> Found:
    """Find the setting with the lowest mean.

    given: the YAML's own, measured. knobs: what may be moved, by key. measure: gives a candidate,
    or raises Exhausted. fixed: other options that decide which knobs act.
    """
    found = Found(given)
    try:
        # where little acts first: it costs little, and a budget that ends has seen every word
        for start in sorted(_branches(given, knobs), key=lambda s: len(_acting(s, knobs, fixed))):
            _descend(found, start, knobs, measure, fixed)
    except Exhausted:
        found.exhausted = True
    return found


def _branches(given: Measured, knobs: Mapping[str, Knob]) -> list[Setting]:
    """The given setting, and with it every other word of an option that is a word."""
    starts = [dict(given.setting)]
    for key, knob in knobs.items():
        starts += [
            {**start, key: word} for start in starts for word in knob.words if word != start[key]
        ]
    return starts


def _acting(
    start: Setting, knobs: Mapping[str, Knob], fixed: Mapping[str, object]
) -> dict[str, Knob]:
    """The numbers that have an effect beside a start's words."""
    beside = {**fixed, **start}
    return {key: knob for key, knob in knobs.items() if not knob.words and knob.acts(beside)}


def _descend(
    found: Found,
    start: Setting,
    knobs: Mapping[str, Knob],
    measure: Measure,
    fixed: Mapping[str, object],
) -> None:
    """From a start along each option that acts, then over those of each model at once."""
    here = measure(start)
    found.take(here)
    acting = {
        key: knob for key, knob in knobs.items() if not knob.words and knob.acts({**fixed, **start})
    }
    single = [key for key, knob in acting.items() if not knob.per_model]
    several = [key for key, knob in acting.items() if knob.per_model]
    for _ in range(ROUNDS if len(single) + bool(several) > 1 else 1):
        before = here
        for key in single:
            here = _along(found, here, key, acting[key], measure)
        if len(several) == 1:
            here = _along(found, here, several[0], acting[several[0]], measure)
        elif several:
            here = _over(found, here, several, measure)
        gained = before.above(here)
        if not gained.value > gained.error:
            return


def _along(found: Found, here: Measured, key: str, knob: Knob, measure: Measure) -> Measured:
    """The lowest along one option from a setting, or that setting itself."""
    line = Line(key)
    found.lines.append(line)
    value = here.setting[key]
    start = float(value) if isinstance(value, int | float) else knob.start

    def at(number: float) -> Measured:
        known = dict(line.points)
        if number not in known:
            known[number] = measure({**here.setting, key: number})
            line.points = sorted(known.items())
        return known[number]

    walk = _Walk(knob)
    try:
        _bracket(at, walk, start)
        for _ in range(REFINEMENTS):
            line.best = fitted(line, walk)
            if line.best is None:
                break
            number = walk.rounded(line.best.value)
            if any(walk.distance(number, other) < CLOSE for other, _ in line.points):
                break
            at(number)
    finally:  # also where the budget ends here: what was measured counts
        if line.points:
            line.best = fitted(line, walk)
            found.take(line.lowest[1])
    lowest = line.lowest[1]
    return lowest if is_lower(lowest, here) else here


class _Walk:
    """The scale on which an option is moved: its value or its logarithm, over its range."""

    def __init__(self, knob: Knob) -> None:
        self._log = knob.logarithmic
        self._low, self._high = knob.lowest, knob.highest
        ends = (self.to(knob.lowest), self.to(knob.highest))
        self._range = ends[1] - ends[0]

    def to(self, number: float) -> float:
        return math.log(number) if self._log else number

    def back(self, place: float) -> float:
        return min(max(math.exp(place) if self._log else place, self._low), self._high)

    def moved(self, number: float, share: float) -> float:
        """So many shares of the range further, within it."""
        return self.rounded(self.back(self.to(number) + share * self._range))

    def distance(self, one: float, other: float) -> float:
        """As a share of the range."""
        return abs(self.to(one) - self.to(other)) / self._range

    def rounded(self, number: float) -> float:
        """Three digits: what is written into a YAML is what was measured."""
        return float(f"{min(max(number, self._low), self._high):.3g}")


def _bracket(at: Callable[[float], Measured], walk: _Walk, start: float) -> None:
    """Walk downhill with growing steps until it goes up again, or to the end of the range."""
    share = 1.0 / STEPS
    here = walk.rounded(start)
    ahead = walk.moved(here, share)
    if ahead == here or at(ahead).figure.value > at(here).figure.value:
        share = -share
        ahead = walk.moved(here, share)
        if ahead == here or at(ahead).figure.value > at(here).figure.value:
            return
    while True:
        share *= GROWTH
        here, ahead = ahead, walk.moved(ahead, share)
        if ahead == here or not at(ahead).figure.value < at(here).figure.value:
            return


def fitted(line: Line, walk: _Walk) -> Figure | None:
    """Where a parabola through the lowest points is least; None unless it opens upwards there.

    Its error is that of the text: the parabola is fitted anew to samples drawn with replacement.
    """
    lowest = line.lowest[0]
    finite = [(number, m) for number, m in line.points if math.isfinite(m.figure.value)]
    left = [point for point in finite if point[0] < lowest]
    right = [point for point in finite if point[0] > lowest]
    if not (left and right):
        return None
    further = sorted([*left[:-1], *right[1:]], key=lambda p: walk.distance(p[0], lowest))[:1]
    near = sorted([left[-1], line.lowest, right[0], *further], key=lambda point: point[0])
    if np.ptp([m.figure.value for _, m in near]) < FLAT:
        return None
    places = np.array([walk.to(number) for number, _ in near])
    floor = line.lowest[1]
    errors = np.array([m.above(floor).error for _, m in near])
    errors = np.maximum(errors, errors[errors > 0].min() if (errors > 0).any() else 1.0)

    def minimum(heights: Sequence[float]) -> float:
        square, slope, _ = np.polyfit(places - places.mean(), heights, 2, w=1 / errors)
        if not square > 0:
            return math.nan
        place = places.mean() - slope / (2 * square)
        return float(min(max(place, places.min()), places.max()))

    place = minimum([m.figure.value for _, m in near])
    if math.isnan(place):
        return None
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        rows = {name: random.integers(0, len(v), len(v)) for name, v in floor.values.items()}
        again = minimum([m.drawn(rows) for _, m in near])
        if not math.isnan(again):
            drawn.append(walk.back(again))
    value = walk.back(place)
    return Figure(value, float(np.std(drawn)) if len(drawn) > 1 else math.inf)


def _over(found: Found, here: Measured, keys: Sequence[str], measure: Measure) -> Measured:
    """The lowest over several options at once."""
    from scipy.optimize import minimize

    knobs = [knob_of(key) for key in keys]
    start = [
        float(v) if isinstance(v := here.setting[key], int | float) else knob.start
        for key, knob in zip(keys, knobs, strict=True)
    ]
    best = here

    def height(numbers: Sequence[float]) -> float:
        nonlocal best
        walks = [_Walk(knob) for knob in knobs]
        moved = {k: w.rounded(float(n)) for k, w, n in zip(keys, walks, numbers, strict=True)}
        measured = measure({**here.setting, **moved})
        if measured.figure.value < best.figure.value:
            best = measured
        value = measured.figure.value
        return value if math.isfinite(value) else 1e3

    try:
        minimize(
            height,
            start,
            method="COBYQA",
            bounds=[(knob.lowest, knob.highest) for knob in knobs],
            options={
                "maxfev": OVER_SEVERAL * len(keys),
                "initial_tr_radius": 0.3,
                "final_tr_radius": 0.01,
            },
        )
    finally:
        found.take(best)
    return best if is_lower(best, here) else here
