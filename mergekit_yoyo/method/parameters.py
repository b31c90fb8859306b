"""The parameters of `yoyo_fusion` in mergekit's YAML: the options of `fuse`, but for `anchor`."""

from functools import partial
from typing import Annotated

from mergekit.merge_methods.base import ParameterScope, ParameterSpec
from pydantic import BeforeValidator

from mergekit_yoyo.algorithm.options import EPS, MAX_SCALE, TUKEY_C, check_choice, check_number


def _choice(name: str, default: str, description: str) -> ParameterSpec:
    checked = Annotated[str, BeforeValidator(partial(check_choice, name))]
    return ParameterSpec(name, checked, ParameterScope.SHARED, default, description)


def _number(name: str, default: float, description: str) -> ParameterSpec:
    checked = Annotated[float, BeforeValidator(partial(check_number, name))]
    return ParameterSpec(name, checked, ParameterScope.SHARED, default, description)


PARAMETERS: tuple[ParameterSpec, ...] = (
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
    _choice(
        "experts",
        "auto",
        "packed experts: auto (as the family's checkpoints store them), packed or separate",
    ),
)
