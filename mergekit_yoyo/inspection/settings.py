"""What the YAML says that mergekit does not hear: keys, parameters and values, with their place.

mergekit's models accept any key and its resolver asks only for parameters that it knows, so that a
misspelt one is dropped without a word. Here mergekit's own models are asked to forbid keys that
they lack, and every parameter is held against the specs of the merge method, whichever it is.
"""

import importlib.resources
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from mergekit_yoyo.errors import close_to, explain_invalid, nearest, path_in
from mergekit_yoyo.inspection.remark import Remark, error, some, warning
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.outside import load_yaml

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration
    from mergekit.merge_methods import MergeMethod

_LONGEST = 100  # of a number that is written out
# to the base of 2, 8, 16 or 60, or with digits set apart
_ODD_NUMBER = re.compile(r"[-+]?(0[bxo]?[0-9a-fA-F_]+|[0-9_]+(:[0-9._]+)+|[0-9.]*_[0-9._]*)")
MULTI_HINT = " (`name` belongs to mergekit-multi)"


class Setting(NamedTuple):
    """One parameter as the YAML sets it. model: of the entry it stands at, if it does."""

    place: str
    model: str | None
    name: str
    value: Any


def check_settings(merge_yaml: MergeYaml) -> list[Remark]:
    """All that mergekit would drop or refuse in the file, without looking at a model."""
    method = method_of(merge_yaml)
    remarks = [
        error(
            f"{place or 'top level'}: mergekit knows no key {key} here and drops it without a "
            f"word{MULTI_HINT if key == 'name' and not place else ''}. "
            f"{_belongs(key, place, method) or nearest(key, _keys())}"
        )
        for place, key in _unknown(load_yaml(merge_yaml.text, "the merge YAML"))
    ]
    remarks += _check_names(merge_yaml.config)
    remarks += _check_numbers(merge_yaml.text)
    if method is None:
        from mergekit.merge_methods import registry

        names = [known.spec.name for known in registry.registered_methods()]
        remarks.append(
            error(
                f"merge_method: mergekit has no {merge_yaml.method}. "
                f"{nearest(merge_yaml.method, names)}"
            )
        )
        return remarks
    for setting in settings_of(merge_yaml.config):
        remarks += _check_parameter(method, setting)
    return remarks


def _belongs(key: str, place: str, method: "MergeMethod | None") -> str | None:
    """Where a key that is unknown at `place` belongs, if it is a word of another place."""
    from mergekit.merge_methods.base import ParameterScope

    specs = {spec.name: spec for spec in method.spec.parameters} if method else {}
    if key in specs:
        on_model = place.rpartition(".")[2].startswith(("models[", "sources["))
        if on_model and specs[key].scope == ParameterScope.SHARED:
            return f"It belongs under `parameters:` of the merge: `parameters: {{{key}: ...}}`."
        of_models = specs[key].scope != ParameterScope.SHARED
        whose = "this model" if on_model else "each model" if of_models else place or "the merge"
        return f"It belongs under `parameters:` of {whose}: `parameters: {{{key}: ...}}`."
    return _place_of(key, None, place)


def _place_of(key: str, method: "MergeMethod | None", place: str = "") -> str | None:
    """What a word is that is no parameter here: a key of another place, or of other methods.

    method: whose parameter it would be.
    """
    from mergekit.config import InputSliceDefinition, MergeConfiguration
    from mergekit.merge_methods import registry

    if key in MergeConfiguration.model_fields and (place or method):
        return f"`{key}:` stands at the top level of the file."
    if key in InputSliceDefinition.model_fields:
        return f"`{key}:` stands at a source of a slice, under `slices:` and `sources:`."
    having = [
        known.spec.name
        for known in registry.registered_methods()
        if any(spec.name == key for spec in known.spec.parameters)
    ]
    own = [spec.name for spec in method.spec.parameters] if method else []
    if not having or close_to(key, own):
        return None
    return f"It is a parameter of {some(having)}."


def method_of(merge_yaml: MergeYaml) -> "MergeMethod | None":
    """The merge method, None if mergekit has none of that name."""
    from mergekit import merge_methods

    try:
        return merge_methods.get(merge_yaml.method)
    except RuntimeError:
        return None


def settings_of(config: "MergeConfiguration") -> Iterator[Setting]:
    """Every parameter wherever it can stand: merge, modules, slices, sources and models."""
    parts: list[tuple[str, Any]] = [("", config)]
    for name, module in (config.modules or {}).items():
        parts.append((f"modules.{name}.", module))
    for prefix, part in list(parts):
        for k, entry in enumerate(part.models or []):
            parts.append((f"{prefix}models[{k}].", entry))
        for k, piece in enumerate(part.slices or []):
            parts.append((f"{prefix}slices[{k}].", piece))
            for j, source in enumerate(piece.sources):
                parts.append((f"{prefix}slices[{k}].sources[{j}].", source))
    for prefix, part in parts:
        model = getattr(part, "model", None)
        for name, value in (part.parameters or {}).items():
            where = "" if model is None else f" ({model})"
            yield Setting(f"{prefix}parameters{where}", model and str(model), name, value)


def filters_of(value: Any) -> Iterator[str]:
    """The filters of a parameter's value."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, BaseModel) and (found := getattr(part, "filter", None)):
            yield found


def _check_parameter(method: "MergeMethod", setting: Setting) -> Iterator[Remark]:
    from mergekit.merge_methods.base import ParameterScope

    place, model, name, value = setting
    known = {spec.name: spec for spec in method.spec.parameters}
    if name not in known:
        hint = _place_of(name, method) or nearest(name, known) or "It has no parameters."
        yield error(
            f"{place}: {method.spec.name} knows no parameter {name}; mergekit drops it without a "
            f"word. {hint}"
        )
        return
    if model is not None and known[name].scope == ParameterScope.SHARED:
        yield error(
            f"{place}: {name} is one for the whole merge; mergekit ignores it on a single model. "
            "Move it to `parameters:` of the merge or of the slice."
        )
    if any(part == [] for part in _values(value)):
        yield error(f"{place}: {name}: the list is empty: it gives no layer a value.")
    for scalar in _scalars(value):
        try:
            known[name].validate(scalar)
        except ValidationError as wrong:
            what = explain_invalid(wrong, scalar)
            yield error(f"{place}: {name}: {what}; got {scalar!r}.")
        except Exception as wrong:  # validators of any method
            yield error(f"{place}: {wrong}")
    for words in _gradients(value):
        if all(isinstance(word, str) for word in words) and known[name].value_type is str:
            yield warning(
                f"{place}: {name}: in the gradient {words} only the last layer of each slice gets "
                f"{words[-1]}. Use filters."
            )


def _values(value: Any) -> Iterator[Any]:
    """What an option is set to, by each of its filters if it has any."""
    parts = value if isinstance(value, list) else [value]
    filtered = [part.value for part in parts if isinstance(part, BaseModel)]  # type: ignore[attr-defined]
    yield from filtered or [value]


def _check_numbers(text: str) -> Iterator[Remark]:
    """Numbers that are not what they look like: in YAML, 1:30 is 90 and 010 is 8."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.style is None and event.implicit[0]:
            word = event.value
            if not _ODD_NUMBER.fullmatch(word):
                continue
            if len(word) > _LONGEST:
                yield error(f"{word[:24]}...: no option is a number of {len(word):,} digits")
            elif isinstance(number := yaml.safe_load(word), int | float):
                yield warning(f"{word} is read as the number {number}, as YAML has it")


def _gradients(value: Any) -> Iterator[list[Any]]:
    parts = value if isinstance(value, list) else [value]
    if len(parts) > 1 and not any(isinstance(part, BaseModel) for part in parts):
        yield parts
    for part in parts:
        if isinstance(part, BaseModel) and isinstance(part.value, list):  # type: ignore[attr-defined]
            yield from _gradients(part.value)  # type: ignore[attr-defined]


def _scalars(value: Any) -> Iterator[Any]:
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, BaseModel):
            yield from _scalars(part.value)  # type: ignore[attr-defined]
        else:
            yield part


def _check_names(config: "MergeConfiguration") -> Iterator[Remark]:
    """Words that mergekit looks up only while or after it merges."""
    from mergekit._data import chat_templates
    from mergekit.common import dtype_from_name

    for key in ("dtype", "out_dtype"):
        try:
            dtype_from_name(getattr(config, key))
        except RuntimeError as wrong:
            names = ["bfloat16", "float16", "float32", "float64"]
            yield error(f"{key}: {wrong}. {nearest(getattr(config, key), names)}")
    multiple = config.tokenizer and config.tokenizer.pad_to_multiple_of
    if multiple is not None and multiple < 1:
        yield error(f"tokenizer.pad_to_multiple_of: expected 1 or more; got {multiple}.")
    template = config.chat_template
    if template and template != "auto" and "{" not in template:
        files = importlib.resources.files(chat_templates).iterdir()
        names = [file.name.removesuffix(".jinja") for file in files if ".jinja" in file.name]
        if template not in names:
            yield error(
                f"chat_template: mergekit has no {template!r}, and the merge would get no "
                f"tokenizer. {nearest(template, ['auto', *sorted(names)])}"
            )


def _unknown(data: Any) -> dict[tuple[str, str], None]:
    """Keys of the raw YAML that mergekit's models lack, as (place, key), in order."""
    from mergekit.config import MergeConfiguration

    try:
        MergeConfiguration.model_validate(data, extra="forbid")
    except ValidationError as wrong:
        found = [detail["loc"] for detail in wrong.errors() if detail["type"] == "extra_forbidden"]
        paths = [path_in(data, location) for location in found]
        return {(_shown(path[:-1]), str(path[-1])): None for path in paths}
    return {}


def _shown(path: list[str | int]) -> str:
    """`models[0].parameters`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def _keys() -> list[str]:
    """Every key that mergekit's models have anywhere."""
    from mergekit import config
    from mergekit.tokenizer import config as tokenizer

    kinds = [*vars(config).values(), *vars(tokenizer).values()]
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return list(dict.fromkeys(key for model in models for key in model.model_fields))
