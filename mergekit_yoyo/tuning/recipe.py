"""A merge YAML as something to be moved: which of its options may, and the YAML with others."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mergekit_yoyo.errors import YoyoError, nearest
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.tuning.knobs import KNOBS, Knob, Setting


@dataclass(frozen=True)
class Recipe:
    """A merge YAML and what of it may be moved. file: for messages."""

    file: Path
    merge_yaml: MergeYaml

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the YAML says."""
        found: dict[str, Any] = yaml.safe_load(self.merge_yaml.text)
        return found

    @property
    def method(self) -> str:
        """Name of the merge method."""
        return self.merge_yaml.method

    @cached_property
    def models(self) -> list[str]:
        """The models under `models:`, as the YAML names them; none where it has slices."""
        return [_name(entry["model"]) for entry in self.data.get("models") or ()]

    @property
    def base(self) -> str | None:
        """The base_model, as the YAML names it."""
        base = self.data.get("base_model")
        return None if base is None else _name(base)

    @cached_property
    def anchored(self) -> bool:
        """Whether the base is the center of the merge."""
        return bool(self._shared("center") == "anchor")

    @cached_property
    def deciding(self) -> Setting:
        """The options, as the YAML has them, that decide which others act."""
        return {option: self.value(option) for option in ("consensus", "center")}

    @cached_property
    def takes_base(self) -> bool:
        """Whether the method merges the base_model as it does the others."""
        from mergekit.merge_methods import get
        from mergekit.merge_methods.base import BasePolicy

        import mergekit_yoyo.method  # noqa: F401  # known where the start-up hook is not

        return bool(get(self.method).spec.contract.base == BasePolicy.IGNORED)

    def knobs(self, asked: Sequence[str] = ()) -> tuple[dict[str, Knob], list[str]]:
        """What may be moved, by key, and sentences about what may not.

        asked: options by name; by default those that are moved unasked.

        Raises:
            YoyoError: the method does not have an option that was asked for, or nothing is left.
        """
        known = self._options()
        for name in asked:
            if name not in known:
                raise YoyoError(
                    f"--move: {self.method} has no option {name} that can be moved. "
                    f"{nearest(name, known)}".strip()
                )
        found: dict[str, Knob] = {}
        notes = []
        for knob in KNOBS:
            if knob.option not in known or not (knob.option in asked if asked else knob.unasked):
                continue
            if knob.option == "recall_prior" and not self.anchored:
                continue
            if fixed := self._fixed(knob):
                notes.append(f"{knob.option} stays as it is: {fixed}")
                continue
            found |= dict.fromkeys(self._keys(knob), knob)
        if not found:
            raise YoyoError(
                f"{self.file}: {self.method} has nothing to tune here"
                + (f" ({'; '.join(notes)})." if notes else ": no option of it is a number.")
                + " Choose a method with a strength: recall, task_arithmetic, linear with weights."
            )
        return found, notes

    def value(self, key: str) -> Any:
        """What the YAML has for a key, else the method's default; None if there is neither."""
        option, _, index = key.rstrip("]").partition("[")
        if index:
            own = self.data["models"][int(index)].get("parameters") or {}
            if option in own:
                return own[option]
        return self._shared(option)

    def setting(self, keys: Sequence[str]) -> Setting:
        """The YAML's own values."""
        return {key: self.value(key) for key in keys}

    def with_setting(self, setting: Setting) -> dict[str, Any]:
        """What the YAML would say with these values; what it says already, stays as it is."""
        data = deepcopy(self.data)
        for key, value in setting.items():
            if value == self.value(key):
                continue
            option, _, index = key.rstrip("]").partition("[")
            places: list[Any] = [data]
            if index:
                places = [data["models"][int(index)]]
            else:
                holding = [
                    m for m in data.get("models") or () if option in (m.get("parameters") or {})
                ]
                places = holding or places
            for place in places:
                place["parameters"] = {**(place.get("parameters") or {}), option: value}
        return data

    def _options(self) -> list[str]:
        from mergekit.merge_methods import get

        import mergekit_yoyo.method  # noqa: F401  # known where the start-up hook is not

        known = {parameter.name for parameter in get(self.method).spec.parameters}
        return [knob.option for knob in KNOBS if knob.option in known]

    def _shared(self, option: str) -> Any:
        """Of all models; of the first that has it where models have it alike (`density`)."""
        parameters = self.data.get("parameters") or {}
        for entry in self.data.get("models") or ():
            if option in (entry.get("parameters") or {}):
                return entry["parameters"][option]
        if option in parameters:
            return parameters[option]
        from mergekit.merge_methods import get
        from mergekit.merge_methods.base import MISSING

        import mergekit_yoyo.method  # noqa: F401

        found = [p.default for p in get(self.method).spec.parameters if p.name == option]
        return None if not found or found[0] is MISSING else found[0]

    def _keys(self, knob: Knob) -> list[str]:
        if not knob.per_model:
            return [knob.option]
        moved = [k for k, name in enumerate(self.models) if self._is_weighed(name)]
        if self.method == "linear" and self._shared("normalize") is not False:
            moved = moved[1:]  # only the ratios count
        return [f"{knob.option}[{k}]" for k in moved]

    def _is_weighed(self, name: str) -> bool:
        return name != self.base or (self.takes_base and not self.anchored)

    def _fixed(self, knob: Knob) -> str | None:
        """Why the YAML's own value of an option is not one number that can be moved."""
        if knob.per_model and len(self.models) < 2:
            return "only models under `models:` have weights of their own here"
        for place, parameters in _places(self.data):
            value = parameters.get(knob.option)
            if value is None:
                continue
            if place in ("slice", "module"):
                return f"a {place} of the YAML sets it"
            if isinstance(value, list | dict):
                return "the YAML has filters or a gradient for it"
        if not knob.per_model:
            own = {
                entry["parameters"][knob.option]
                for entry in self.data.get("models") or ()
                if knob.option in (entry.get("parameters") or {})
            }
            if len(own) > 1:
                return "the YAML has another value for each model"
        return None


def _places(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everywhere a YAML can have parameters."""
    yield "merge", data.get("parameters") or {}
    for entry in data.get("models") or ():
        yield "model", entry.get("parameters") or {}
    for module in (data.get("modules") or {}).values():
        yield "module", module.get("parameters") or {}
        for entry in module.get("models") or ():
            yield "module", entry.get("parameters") or {}
        yield from _in_slices(module.get("slices"))
    yield from _in_slices(data.get("slices"))


def _in_slices(slices: list[Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in slices or ():
        yield "slice", part.get("parameters") or {}
        for source in part["sources"]:
            yield "slice", source.get("parameters") or {}


def _name(model: Any) -> str:
    """A model as the YAML names it: a text, or mergekit's long form."""
    if isinstance(model, dict):
        inner = model.get("model", model)
        return str(inner.get("path", inner) if isinstance(inner, dict) else inner)
    return str(model)
