"""The options of the method: defaults, ranges, and the sentence that refuses a wrong value."""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError

Consensus = Literal["tukey", "recall"]
Center = Literal["geometric_median", "coordinate_median", "anchor"]
Rescale = Literal["mean", "median"]
MadMedian = Literal["standard", "lower"]
Experts = Literal["auto", "packed", "separate"]
Kind = Literal["auto", "linear", "transposed", "embedding", "vector"]
Strength = float | Literal["auto"]

TUKEY_C = 4.685  # Tukey's constant: 95 % efficiency on Gaussian data
MAX_SCALE = 10.0  # lambda_max of step 6
EPS = 1e-8
RIDGE = 0.1  # rho of recall

CHOICES: dict[str, tuple[str, ...]] = {
    "consensus": get_args(Consensus),
    "center": get_args(Center),
    "rescale": get_args(Rescale),
    "mad_median": get_args(MadMedian),
    "experts": get_args(Experts),
    "kind": get_args(Kind),
}
# smallest value allowed, and whether it is allowed itself
LOWEST: dict[str, tuple[float, bool]] = {
    "tukey_c": (0.0, False),
    "max_scale": (1.0, True),
    "eps": (0.0, False),
    "ridge": (1e-6, True),  # far below, the factorization of recall fails without a word
    "recall_strength": (0.0, False),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `fuse` that say how to merge, checked when made.

    Raises YoyoError for a value out of range.
    """

    consensus: Consensus
    center: Center
    anchor: int | None
    rescale: Rescale
    mad_median: MadMedian
    tukey_c: float
    max_scale: float
    eps: float
    ridge: float
    recall_strength: Strength
    kind: Kind

    def __post_init__(self) -> None:
        for option in ("consensus", "center", "rescale", "mad_median", "kind"):
            check_choice(option, getattr(self, option))
        for option in ("tukey_c", "max_scale", "eps", "ridge"):
            check_number(option, getattr(self, option))
        check_strength(self.recall_strength)

    def average(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean or median over the inputs (axis 1), for steps 8 and 9."""
        return np.asarray(np.mean(values, 1) if self.rescale == "mean" else np.median(values, 1))


def check_choice(option: str, value: object) -> str:
    """The value, if it is one of the option's choices. Raises YoyoError, listing them, if not."""
    choices = CHOICES[option]
    if isinstance(value, str) and value in choices:
        return value
    nearest = get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise YoyoError(f"{option}: expected one of {', '.join(choices)}; got {value!r}.{hint}")


def check_number(option: str, value: object) -> float:
    """The value as a float, if it is finite and in range. Raises YoyoError if not."""
    lowest, allowed = LOWEST[option]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not (
        math.isfinite(number) and (number > lowest or (allowed and number == lowest))
    ):
        bound = f"of at least {lowest:g}" if allowed else f"above {lowest:g}"
        raise YoyoError(f"{option}: expected a number {bound}; got {value!r}.")
    return number


def check_strength(value: object) -> Strength:
    """The value of recall_strength, `auto` or a number. Raises YoyoError if it is neither."""
    return "auto" if value == "auto" else check_number("recall_strength", value)
