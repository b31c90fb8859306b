"""The parameters of `yoyo_fusion` in mergekit's YAML: options of `fuse`, and `report`."""

from typing import Any

from mergekit.merge_methods.base import ParameterScope, ParameterSpec

from mergekit_yoyo.algorithm.options import (
    EPS,
    MAX_SCALE,
    RIDGE,
    TUKEY_C,
    Strength,
    check_choice,
    check_number,
    check_strength,
)
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.method.refusal import refusals


class _Choice(ParameterSpec):  # type: ignore[misc]  # mergekit is not typed
    """An option with choices. Validated by us: pydantic would wrap the sentence that refuses."""

    def validate(self, value: Any) -> str:
        with refusals():
            return check_choice(self.name, value)


class _Number(ParameterSpec):  # type: ignore[misc]
    """A number with a range."""

    def validate(self, value: Any) -> float:
        with refusals():
            return check_number(self.name, value)


class _Strength(ParameterSpec):  # type: ignore[misc]
    """A number, or `auto`."""

    def validate(self, value: Any) -> Strength:
        with refusals():
            return check_strength(value)


class _Path(ParameterSpec):  # type: ignore[misc]
    """A path, or None."""

    def validate(self, value: Any) -> str | None:
        if value is None or (isinstance(value, str) and value.strip()):
            return value
        with refusals():
            raise YoyoError(f"{self.name}: expected a path in quotes; got {value!r}.")


def _choice(name: str, default: str, description: str) -> ParameterSpec:
    return _Choice(name, str, ParameterScope.SHARED, default, description)


def _number(name: str, default: float, description: str) -> ParameterSpec:
    return _Number(name, float, ParameterScope.SHARED, default, description)


PARAMETERS: tuple[ParameterSpec, ...] = (
    _choice(
        "consensus",
        "tukey",
        "tukey, the published method, or recall, which keeps what each model learned",
    ),
    _choice(
        "center",
        "geometric_median",
        "robust center: geometric_median, coordinate_median, or anchor (base_model is the center)",
    ),
    _choice("rescale", "mean", "how RMS and norm are restored: mean, or median over the inputs"),
    _choice(
        "mad_median", "standard", "median in the two MADs; lower is that of the authors' script"
    ),
    _number("tukey_c", TUKEY_C, "Tukey's constant: a residual beyond c scales is rejected"),
    _number("max_scale", MAX_SCALE, "upper bound of the energy scale lambda"),
    _number("eps", EPS, "epsilon of the formulas"),
    _number("ridge", RIDGE, "rho of recall: share of the energy that is spread over all inputs"),
    _Strength(
        "recall_strength",
        str,
        ParameterScope.SHARED,
        "auto",
        "beta of recall: how much of the recalled differences is added to the center, or auto",
    ),
    _choice(
        "experts",
        "auto",
        "packed experts: auto (as the family's checkpoints store them), packed or separate",
    ),
    _Path("report", str, ParameterScope.SHARED, None, "file for the record of the merge"),
)
