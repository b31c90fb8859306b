"""The parameters of `yoyo_fusion` in mergekit's YAML: the options of `fuse`, the weight of each
model, and `report`."""

from typing import Any

from mergekit.merge_methods.base import ParameterScope, ParameterSpec

from mergekit_yoyo.algorithm.options import WEIGHT, Choice, Declared, Flag, declared
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.method.refusal import refusals


class _Option(ParameterSpec):  # type: ignore[misc]  # mergekit is not typed
    """An option of `fuse`. Validated by us: pydantic would wrap the sentence that refuses."""

    def validate(self, value: Any) -> Any:
        with refusals():
            return _DECLARED[self.name].checked(value)


class _Weight(ParameterSpec):  # type: ignore[misc]
    """How much a model is trusted."""

    def validate(self, value: Any) -> Any:
        with refusals():
            return WEIGHT.checked(self.name, value)


class _Path(ParameterSpec):  # type: ignore[misc]
    """A path, or None."""

    def validate(self, value: Any) -> str | None:
        if value is None or (isinstance(value, str) and value.strip()):
            return value
        with refusals():
            raise YoyoError(f"{self.name}: expected a path in quotes; got {value!r}.")


def _parameter(option: Declared) -> ParameterSpec:
    words = isinstance(option.range, Choice) or option.default == "auto"
    kind = str if words else bool if isinstance(option.range, Flag) else float
    return _Option(option.name, kind, ParameterScope.SHARED, option.default, option.meaning)


_DECLARED = {option.name: option for option in declared()}
PARAMETERS: tuple[ParameterSpec, ...] = (
    *map(_parameter, _DECLARED.values()),
    _Weight("weight", float, ParameterScope.INPUT, 1.0, "how much a model is trusted beforehand"),
    _Path("report", str, ParameterScope.SHARED, None, "file for the record of the merge"),
)
