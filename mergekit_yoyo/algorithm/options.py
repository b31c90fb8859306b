"""The options of the method, each declared once: name, default, range, what it means.

From this declaration follow the arguments of `fuse`, mergekit's parameters and their checks, the
record's `parameters` and the table in docs/merging.md. A new option is one field of `Options`, and
its use in the consensus that heeds it (`consensuses`).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast, get_args

from mergekit_yoyo.algorithm.tolerances import LEAST_RIDGE
from mergekit_yoyo.errors import YoyoError, close_to, nearest

ConsensusName = Literal["tukey", "recall"]
Center = Literal["geometric_median", "coordinate_median", "anchor"]
Rescale = Literal["mean", "median"]
MadMedian = Literal["standard", "lower"]
SignAlignment = Literal["none", "first", "base"]
WeightFunction = Literal["tukey", "welsch"]
Deviations = Literal["center", "median"]
RankRule = Literal["full", "principal", "noise"]
ScaleRule = Literal["energy", "root"]
RoundingRule = Literal["nearest", "stochastic"]
Precision = Literal["auto", "float32", "float64"]
Experts = Literal["auto", "packed", "separate"]
TensorKind = Literal["auto", "linear", "transposed", "embedding", "vector"]
NumberOrAuto = float | Literal["auto"]

MOST = 1e30  # its product with any norm is a float64


@dataclass(frozen=True)
class Choice:
    """One of several words."""

    words: tuple[str, ...]

    def checked(self, name: str, value: object) -> str:
        """The value, if it is one of the words. Raises YoyoError, listing them, if not."""
        if isinstance(value, str) and value in self.words:
            return value
        close = close_to(str(value), self.words)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise YoyoError(f"{name}: expected one of {', '.join(self.words)}; got {value!r}.{hint}")


@dataclass(frozen=True)
class Number:
    """A number of at least `lowest`, or above it, up to MOST; or the word `auto`, if allowed."""

    lowest: float
    above: bool
    auto: bool

    def checked(self, name: str, value: object) -> float | str:
        """The value as a float. Raises YoyoError if it is none, or out of range."""
        if self.auto and value == "auto":
            return "auto"
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        inside = number > self.lowest or (number == self.lowest and not self.above)
        if isinstance(value, bool) or not (inside and number <= MOST):
            bound = f"{'above' if self.above else 'of at least'} {self.lowest:g}"
            bound += f" and at most {MOST:g}" if number > MOST and math.isfinite(number) else ""
            raise YoyoError(f"{name}: expected a number {bound}; got {value!r}.")
        return number


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def checked(self, name: str, value: object) -> bool:
        """The value as it is. Raises YoyoError if it is neither."""
        if isinstance(value, bool):
            return value
        raise YoyoError(f"{name}: expected true or false; got {value!r}.")


Range = Choice | Number | Flag
WEIGHT = Number(0.0, above=False, auto=False)  # of a model, beside the options


def _choice(default: str, words: Any, meaning: str) -> Any:
    metadata = {"range": Choice(get_args(words)), "meaning": meaning}
    return field(default=default, metadata=metadata)


def _flag(meaning: str) -> Any:
    return field(default=False, metadata={"range": Flag(), "meaning": meaning})


def _number(
    default: float | str,
    meaning: str,
    *,
    above: float | None = None,
    least: float | None = None,
) -> Any:
    lowest = least if above is None else above
    allowed = Number(lowest or 0.0, above=above is not None, auto=default == "auto")
    return field(default=default, metadata={"range": allowed, "meaning": meaning})


# ruff: noqa: RUF009  # fields of a dataclass, declared by functions that give fields
@dataclass(frozen=True, kw_only=True)
class Options:
    """How to merge. Checked when made: raises YoyoError for a value out of range."""

    consensus: ConsensusName = _choice(
        "tukey",
        ConsensusName,
        "tukey, the published method, or recall, which keeps what each model learned",
    )
    center: Center = _choice(
        "geometric_median",
        Center,
        "robust center: geometric_median, coordinate_median, or anchor (base_model is the center)",
    )
    rescale: Rescale = _choice(
        "mean", Rescale, "how RMS and norm are restored: mean, or median over the inputs"
    )
    tukey_c: float = _number(
        4.685,  # 95 % efficiency on Gaussian data
        "Tukey's constant: a residual beyond c scales is rejected",
        above=0.0,
    )
    weight_function: WeightFunction = _choice(
        "tukey", WeightFunction, "of step 7: Tukey's biweight, or Welsch's exponential"
    )
    welsch_c: float = _number(
        2.985,  # 95 % efficiency on Gaussian data
        "Welsch's constant: a residual of c scales weighs 1/e",
        above=0.0,
    )
    deviations: Deviations = _choice(
        "center", Deviations, "what step 7 weighs by: distances from the center, or from the median"
    )
    rank_by: RankRule = _choice(
        "full",
        RankRule,
        "directions that are kept: all K - 1 (full), the participation ratio (principal), or those "
        "that stand out of equal noise",
    )
    scale_by: ScaleRule = _choice(
        "energy", ScaleRule, "lambda of step 6: 1 / p of the energy ratio (energy), or its root"
    )
    max_scale: float = _number(10.0, "upper bound of the energy scale lambda", least=1.0)
    mad_median: MadMedian = _choice(
        "standard", MadMedian, "median in the two MADs; lower is that of the authors' script"
    )
    matrix_boost: bool = _flag(
        "raise all singular values of a matrix's update to the largest; not in embeddings and head"
    )
    sign_alignment: SignAlignment = _choice(
        "none",
        SignAlignment,
        "give all inputs the signs of the first model, or of base_model, before anything else",
    )
    eps: float = _number(1e-8, "epsilon of the formulas", above=0.0)
    ridge: NumberOrAuto = _number(
        "auto",
        "rho of recall: how much its prior counts, beside one for each model, or auto",
        least=LEAST_RIDGE,
    )
    recall_prior: NumberOrAuto = _number(
        "auto",
        "alpha of recall around an anchor: the prior is the anchor plus alpha times the summed "
        "differences, or auto",
        least=0.0,
    )
    recall_strength: NumberOrAuto = _number(
        "auto",
        "beta of recall: how much of the recalled differences is added to the center, or auto",
        above=0.0,
    )
    recall_precision: Precision = _choice(
        "auto",
        Precision,
        "arithmetic of recall: float64, float32, or auto (float32 where rounding to half precision "
        "hides the difference)",
    )
    rounding: RoundingRule = _choice(
        "nearest",
        RoundingRule,
        "of a bfloat16 or float16 merge: to nearest, or stochastic (to either neighbor, each as "
        "likely as it is near: right on average, and the same in every run)",
    )
    experts: Experts = _choice(
        "auto",
        Experts,
        "packed experts: auto (as the family's checkpoints store them), packed or separate",
    )

    def __post_init__(self) -> None:
        for option in declared():
            object.__setattr__(self, option.name, option.checked(getattr(self, option.name)))


@dataclass(frozen=True)
class Declared:
    """One option as it is declared."""

    name: str
    default: str | float | bool
    range: Range
    meaning: str

    def checked(self, value: object) -> str | float | bool:
        """The value, as the option has it. Raises YoyoError if it is out of range."""
        return self.range.checked(self.name, value)


def declared() -> Iterator[Declared]:
    """All options, in order."""
    for option in fields(Options):
        default = cast("str | float | bool", option.default)
        yield Declared(option.name, default, option.metadata["range"], option.metadata["meaning"])


def options_of(values: Mapping[str, Any]) -> Options:
    """Options by their names. Raises YoyoError for a name that there is not, with the nearest."""
    names = [option.name for option in declared()]
    for name in values:
        if name not in names:
            raise YoyoError(f"fuse has no option {name}. {nearest(name, names)}")
    return Options(**values)
