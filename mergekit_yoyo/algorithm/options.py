"""The options of the method: defaults, ranges, and the sentence that refuses a wrong value."""

import math
from difflib import get_close_matches
from typing import Literal, get_args

from mergekit_yoyo.errors import YoyoError

Center = Literal["geometric_median", "coordinate_median", "anchor"]
Rescale = Literal["mean", "median"]
MadMedian = Literal["standard", "lower"]
Experts = Literal["auto", "packed", "separate"]

TUKEY_C = 4.685  # Tukey's constant: 95 % efficiency on Gaussian data
MAX_SCALE = 10.0  # lambda_max of step 6
EPS = 1e-8

CHOICES: dict[str, tuple[str, ...]] = {
    "center": get_args(Center),
    "rescale": get_args(Rescale),
    "mad_median": get_args(MadMedian),
    "experts": get_args(Experts),
}
# smallest value allowed, and whether it is allowed itself
LOWEST: dict[str, tuple[float, bool]] = {
    "tukey_c": (0.0, False),
    "max_scale": (1.0, True),
    "eps": (0.0, False),
}


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
