"""Models of pictures and text for mlx-vlm (an extra): whether it reads one, and the config bridge.

mlx-vlm makes a model of a config for the whole and one for each part, and ignores the keys that it
does not know as mlx-lm does. So each field of each is looked up in the transformers config.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.install import install_line
from mergekit_yoyo.mlx.bridge import Bridge, bridge_config, bridged_fields, bridged_section
from mergekit_yoyo.mlx.classes import Build, fields_of
from mergekit_yoyo.model.use import PROCESSOR_FILES

Arrange = Callable[[Mapping[str, Any]], dict[str, Any]]


def has_pictures(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model that takes pictures."""
    return bool(config.get("vision_config"))


def _why_unseen(folder: Path, config: Mapping[str, Any]) -> str:
    """Why mlx-vlm cannot read the pictures' part of a checkpoint at all; empty if it can."""
    if find_spec("mlx_vlm") is None:
        return f"mlx-vlm is not installed ({install_line('vlm')})"
    if config.get("model_file") or _package_name(config) is None:
        return f"mlx-vlm {version('mlx-vlm')} has no model for {config.get('model_type')!r}"
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return (
            f"{folder} has no {PROCESSOR_FILES[0]}, without which nothing makes a model's input of "
            "a picture (`mergekit-yoyo finish` copies it)"
        )
    return ""


def bridge_pictures(
    folder: Path, raw: Mapping[str, Any], declared: Any, *, context: int | None = None
) -> Bridge:
    """The bridge for mlx-vlm's model of a checkpoint.

    mlx-lm's words for the language model are there too, where mlx-vlm has no field of that name, so
    that it can read the export without its pictures.

    Args:
        folder: the checkpoint.
        raw: the parsed `config.json`.
        declared: the config as transformers understands it; None if it does not know the type.
        context: as in `bridge_folder`.

    Raises:
        YoyoError: mlx-vlm is not installed or has no such model, the folder has no processor, or
            the config lacks a value.
    """
    if reason := _why_unseen(folder, raw):
        raise YoyoError(reason)
    from mergekit_yoyo.mlx.seeing import PARTS, seeing_classes

    package = import_module(_package_name(raw) or "")
    model_class, args_class = seeing_classes(package)
    config, doubts = dict(raw), list[str]()

    def build(config: Mapping[str, Any]) -> Any:
        return model_class(args_class.from_dict(config))  # type: ignore[attr-defined]

    if declared is not None:
        parts = {}
        for part in PARTS:
            known = getattr(package, f"{part.title()}Config", None)
            section = getattr(declared, f"{part}_config", None)
            if known is None or section is None:
                continue
            name = f"{part}_config"
            parts[name] = known
            stated = {"model_type": section.model_type} | (raw.get(name) or {})
            found = bridged_fields(known, stated, section, build, context, [], beyond=declared)
            config[name] = _required(known) | stated | found
        config |= bridged_fields(
            package.ModelConfig, raw, declared, build, context, doubts, skip=parts.keys()
        )
        types, arrange = _accepted(config, parts, build)
        config |= types

        def whole(part: Mapping[str, Any]) -> Any:
            return build(arrange({**config, "text_config": part}))

        text, more = bridged_section(
            config["text_config"], declared.text_config, parts["text_config"], whole, context
        )
        doubts += more
        config = _for_both({**config, "text_config": text}, raw, declared, package, context)
        config = arrange(config)
    return Bridge(config, model_class, args_class, tuple(doubts), pictures=True)


def _package_name(config: Mapping[str, Any]) -> str | None:
    """mlx-vlm's package for a model type; None if it has none."""
    from mlx_vlm.utils import get_model_type

    name = f"mlx_vlm.models.{get_model_type(dict(config))}"
    return name if find_spec(name) is not None else None


def _required(known: type) -> dict[str, None]:
    """The fields without a default: some that transformers does not have are read by nobody."""
    return {k: None for k, v in fields_of(known).items() if v.default is v.empty}


def _accepted(
    config: Mapping[str, Any], parts: Mapping[str, Any], build: Build
) -> tuple[dict[str, dict[str, Any]], Arrange]:
    """The parts with model types that mlx-vlm's classes accept, and how it wants the language
    model's config: beside the others, or strewn among the keys of the whole.

    They compare types with the words of the Hub's older configs, where transformers has others by
    now, and so with the place.
    """
    spellings = {
        name: dict.fromkeys(
            [
                config[name]["model_type"],
                fields_of(known)["model_type"].default,
                config["model_type"],
            ]
        )
        for name, known in parts.items()
        if "model_type" in fields_of(known)
    }
    for arrange, *types in product((dict, _strewn), *spellings.values()):
        spoken = {
            name: {**config[name], "model_type": kind}
            for name, kind in zip(spellings, types, strict=True)
            if isinstance(kind, str)
        }
        try:
            build(arrange({**config, **spoken}))
        except (TypeError, ValueError):
            continue
        return spoken, arrange
    return {}, dict


def _strewn(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config["text_config"], **config}


def _for_both(
    config: dict[str, Any],
    raw: Mapping[str, Any],
    declared: Any,
    package: ModuleType,
    context: int | None,
) -> dict[str, Any]:
    """mlx-vlm's config with what mlx-lm reads of other names, if it has the model."""
    try:
        other = bridge_config(raw, declared, context=context).config
    except YoyoError:
        return config

    def besides(values: Mapping[str, Any], ours: Mapping[str, Any], known: type) -> dict[str, Any]:
        return {k: v for k, v in values.items() if k not in fields_of(known) or k not in ours}

    text = config["text_config"]
    text = {**text, **besides(other.get("text_config") or {}, text, package.TextConfig)}
    return {**config, **besides(other, config, package.ModelConfig), "text_config": text}
