"""The config bridge: a transformers config retold in the words that mlx-lm's model class reads.

mlx-lm builds a model from the fields that its `ModelArgs` declares and ignores every other key, so
a key that transformers spells differently is silently replaced by a default. The bridge asks both
sides: each field of `ModelArgs` is looked up in the transformers config class, which knows its own
defaults, aliases (`attribute_map`) and rope parameters. No model family is named here.
"""

import inspect
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from mlx_lm.utils import load_config

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.classes import (
    Build,
    Heard,
    fields_of,
    model_classes,
    name_of,
    overhear,
    part_class,
)
from mergekit_yoyo.mlx.rope import LOCAL_ROPE_KEYS, MISSING, PARTIAL_FIELDS, RopeView
from mergekit_yoyo.model.config import has_language_settings, is_whole_model

# what mlx-lm's models are told and transformers' do without a key, where a comparison confirms it
COMPUTED = {"norm_topk_prob": True}


@dataclass(frozen=True)
class Bridge:
    """What mlx-lm is to be told about a checkpoint.

    Attributes:
        config: the whole `config.json` for mlx-lm, source keys included.
        model_class: mlx-lm's `Model`, or what makes mlx-vlm's one of its kind (`pictures`).
        args_class: its `ModelArgs`.
        doubts: what the source config asks for and mlx-lm has no field for. A comparison of logits
            decides whether it matters; without one, a doubt is a reason to refuse.
        pictures: whether the model takes pictures too, and mlx-vlm is to read it.
    """

    config: dict[str, Any]
    model_class: type
    args_class: type
    doubts: tuple[str, ...] = field(default=())
    pictures: bool = False

    @property
    def library(self) -> str:
        """The library that reads the export."""
        return "mlx-vlm" if self.pictures else "mlx-lm"

    def is_eye(self, path: str) -> bool:
        """Whether a module is no part of the language model: of a tower or a projector."""
        return self.pictures and not path.startswith("language_model.")

    @property
    def args(self) -> Any:
        """The `ModelArgs` that mlx-lm makes of the config."""
        return self.args_class.from_dict(self.config)  # type: ignore[attr-defined]


def bridge_folder(folder: Path, *, context: int | None = None) -> Bridge:
    """The bridge for the checkpoint in `folder`.

    Args:
        folder: a model folder with `config.json`.
        context: the number of tokens that the export is meant for; the model's own by default. It
            picks the factors of longrope, and windows that are as long as it never close.

    Raises:
        YoyoError: mlx-lm has no model for the architecture, or needs a value the config lacks.
    """
    return bridge_config(load_config(folder), declared_config(folder), context=context)


def declared_config(folder: Path) -> Any | None:
    """The checkpoint's config as transformers understands it; None if it does not know the type."""
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig

    if load_config(folder).get("model_type") not in CONFIG_MAPPING:
        return None
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # validators of many kinds
        raise YoyoError(f"{folder / 'config.json'}: transformers refuses it: {error}") from None
    name = (config.architectures or [""])[0]
    if not is_whole_model(name, getattr(transformers, name, transformers.PreTrainedModel)):
        raise YoyoError(f"{folder / 'config.json'}: architectures names {name}, which is no model.")
    if not has_language_settings(config):
        raise YoyoError(
            f"{folder / 'config.json'}: text_config holds no settings of a language model."
        )
    return config


def bridge_config(raw: Mapping[str, Any], declared: Any, *, context: int | None = None) -> Bridge:
    """As `bridge_folder`, from the parsed `config.json` and its transformers config object."""
    model_class, args_class = model_classes(raw)

    def build(config: Mapping[str, Any]) -> Any:
        return model_class(args_class.from_dict(config))  # type: ignore[attr-defined]

    config, doubts = bridged_section(raw, declared, args_class, build, context)
    return Bridge(config, model_class, args_class, tuple(doubts))


def bridged_section(
    raw: Mapping[str, Any], declared: Any, args_class: type, build: Build, context: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Config and doubts for one `ModelArgs`.

    Args:
        raw: what config.json has of this section.
        declared: the section as transformers understands it; None if it does not know the type.
        args_class: that reads the section.
        build: makes the model, of a config whose part for `args_class` it is given.
        context: as in `bridge_folder`.

    Raises:
        YoyoError: the class needs a value that neither config has.
    """
    config, doubts = dict(raw), list[str]()
    if declared is not None:
        config |= bridged_fields(args_class, raw, declared, build, context, doubts)
        rope = RopeView.of(declared, context or 2**62)
        # Scaling rules are computed from the length, so that it can be lowered without them only.
        if context and (rope is None or rope.kind == "default"):
            length = config.get("max_position_embeddings")
            if isinstance(length, int):
                config["max_position_embeddings"] = min(length, context)
    fields = fields_of(args_class)
    missing = [
        name
        for name, parameter in fields.items()
        if name not in config and parameter.default is parameter.empty
    ]
    heard = overhear(build, args_class, config | dict.fromkeys(missing))
    if spoken := _spoken_layer_types(config, heard):
        config["layer_types"] = spoken
        heard = overhear(build, args_class, config | dict.fromkeys(missing))
    if declared is not None and "text_config" not in fields:
        doubts += _unheard_rope(declared, fields, heard, context, name_of(args_class))
        doubts += _unheard_windows(declared, fields, context, name_of(args_class))
    config |= {name: None for name in missing if not heard.reads(name)}
    for name, value in COMPUTED.items():
        if name in missing and name not in config:
            config[name] = value
            doubts.append(f"{name}, which transformers computes and has no key for")
    missing = [name for name in missing if name not in config]
    if missing:
        raise YoyoError(
            f"config.json: {name_of(args_class)} needs {', '.join(missing)}; "
            "the checkpoint's config has no such value, and none that transformers maps to it."
        )
    return config, doubts


def _bridged_part(
    raw: Mapping[str, Any], declared: Any, build: Build, context: int | None
) -> tuple[dict[str, Any], list[str]] | None:
    """`bridged_section` of `text_config`: for the class that reads it, else by its model type."""
    inner = dict(raw.get("text_config") or {})
    inner.setdefault("model_type", declared.model_type)
    args_class = part_class(build, raw, "text_config")
    try:
        if args_class is None:
            bridge = bridge_config(inner, declared, context=context)
            return bridge.config, list(bridge.doubts)
    except YoyoError:  # a part that mlx-lm builds by classes of its own
        return None

    def whole(part: Mapping[str, Any]) -> Any:
        return build({**raw, "text_config": part})

    return bridged_section(inner, declared, args_class, whole, context)


def bridged_fields(
    args_class: type,
    raw: Mapping[str, Any],
    declared: Any,
    build: Build,
    context: int | None,
    doubts: list[str],
    *,
    skip: Container[str] = (),
    beyond: Any = None,
) -> dict[str, Any]:
    """The value of each `ModelArgs` field that the transformers config can answer for.

    Args:
        args_class: whose fields are looked up.
        raw: what config.json has of this section.
        declared: the section as transformers understands it.
        build: makes the model of a section.
        context: as in `bridge_folder`.
        doubts: to which those about single fields are added.
        skip: fields that are left alone.
        beyond: a config that answers where this one does not.
    """
    rope = RopeView.of(declared, _length(declared, context))
    text = declared.get_text_config()
    values: dict[str, Any] = {}
    for name, parameter in fields_of(args_class).items():
        if name in skip:
            continue
        value: Any = rope.field(name) if rope else MISSING
        if value is MISSING and name == "sliding_window_pattern":
            value = _window_pattern(declared, parameter, name_of(args_class))
        for config in (declared, text, beyond):
            if value is MISSING:
                value = _declared_value(config, name)
        if value is MISSING or name == "model_type":
            continue
        if name == "text_config":
            bridged = _bridged_part(raw, value, build, context)
            if bridged is None:
                value = {"model_type": value.model_type, **(raw.get(name) or {})}
            else:
                value = bridged[0]
                doubts += bridged[1]
        elif value is None and not _may_be_none(parameter):
            doubts.append(f"{name} is null, which {name_of(args_class)} may not provide for")
        values[name] = _plain(value)
    return values


def _length(declared: Any, context: int | None) -> int:
    """The tokens that a model is made for: `context`, and no more than its own length."""
    limit = getattr(declared, "max_position_embeddings", None) or 2**62
    return min(context or 2**62, limit)


def _declared_value(declared: Any, name: str) -> Any:
    """What transformers has for `name`: as an attribute, an alias, or a private attribute. Where
    its layers differ, the plain name is that of the sliding ones and `global_` of the full ones.
    """
    layers, spellings = [declared], [name, f"_{name}"]
    if getattr(declared, "is_heterogeneous", False):
        kind = "full_attention" if "global_" in name else "sliding_attention"
        spellings = [name.replace("global_", "")]
        layers = [declared.per_layer_config[i] for i in _layers_of(declared, kind)[:1]] or layers
    for spelling in spellings:
        value = getattr(layers[0], spelling, MISSING)
        if value is not MISSING and not callable(value):
            return value
    return MISSING


def _layers_of(declared: Any, kind: str) -> list[int]:
    return [i for i, layer in enumerate(declared.layer_types) if layer == kind]


def _window_pattern(declared: Any, parameter: inspect.Parameter, model: str) -> Any:
    """The p for which every p-th layer, and no other, sees everything, as mlx-lm counts layers;
    where mlx-lm wants letters, G for such a layer and L for others."""
    kinds = getattr(declared, "layer_types", None)
    if not kinds:
        return MISSING
    full = [kind == "full_attention" for kind in kinds]
    if parameter.annotation is str or str in get_args(parameter.annotation):
        return "".join("G" if sees_all else "L" for sees_all in full) if not all(full) else None
    stated = _declared_value(declared, "sliding_window_pattern")
    candidates = [stated] if isinstance(stated, int) else []
    for period in [*candidates, *range(1, len(kinds) + 2)]:
        if period > 0 and all(f == ((i + 1) % period == 0) for i, f in enumerate(full)):
            return period
    raise YoyoError(
        f"config.json: full attention in layers {[i for i, f in enumerate(full) if f]} of "
        f"{len(full)}; {model} can only have it in every n-th layer."
    )


def _spoken_layer_types(config: Mapping[str, Any], heard: Heard) -> list[str] | None:
    """`layer_types` in the words of mlx-lm's model, which may be older than transformers' own; None
    if they are the same."""
    from transformers.configuration_utils import _LEGACY_LAYER_TYPE_REMAP

    kinds = config.get("layer_types") or []
    older = {
        new: old
        for old, new in _LEGACY_LAYER_TYPE_REMAP.items()
        if new in kinds and new not in heard.words and old in heard.words
    }
    return [older.get(kind, kind) for kind in kinds] if older else None


def _unheard_rope(
    declared: Any, fields: Mapping[str, Any], heard: Heard, context: int | None, model: str
) -> list[str]:
    """What the rope parameters ask for and no field of `ModelArgs` can say, or none that counts."""
    rope = RopeView.of(declared, _length(declared, context))
    if rope is None or "rope_parameters" in fields:
        return []
    doubts = []
    if rope.kind != "default" and not ("rope_scaling" in fields and heard.reads("rope_scaling")):
        doubts.append(f"rope scaling {rope.kind!r}, which {model} does not have")
    if rope.local_differs and not LOCAL_ROPE_KEYS.keys() & fields.keys():
        doubts.append(f"a rope of its own in sliding layers; {model} has one rope")
    if rope.rotary_factor != 1.0 and not PARTIAL_FIELDS & fields.keys():
        doubts.append(f"a rotary factor of {rope.rotary_factor}, for which {model} has no field")
    if rope.main.get("truncate") is False:
        doubts.append("yarn without truncation; mlx-lm rounds its correction range to integers")
    return doubts


def _unheard_windows(
    declared: Any, fields: Mapping[str, Any], context: int | None, model: str
) -> list[str]:
    window = closing_window(declared, context)
    if window is None:
        return []
    heard = {name for name in fields if "window" in name or name == "layer_types"}
    if heard and hasattr(declared, "layer_types"):
        return []
    return [
        f"attention over a window of {window} tokens, which {model} "
        f"does not have: right up to that length only (--max-context {window})"
    ]


def closing_window(declared: Any, context: int | None = None) -> int | None:
    """The sliding window of a transformers config if any layer loses sight of a token within
    `context` tokens (the model's own length by default)."""
    text = declared.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window is not None and not isinstance(window, int):
        raise YoyoError(
            f"config.json: sliding_window: expected a number of tokens; got {str(window)[:40]!r}."
        )
    limit = min(context or 2**62, getattr(text, "max_position_embeddings", None) or 2**62)
    if not window or window >= limit or getattr(text, "use_sliding_window", None) is False:
        return None
    kinds = getattr(text, "layer_types", None)
    return int(window) if kinds is None or "sliding_attention" in kinds else None


def _may_be_none(parameter: inspect.Parameter) -> bool:
    kinds = get_args(parameter.annotation)
    required = parameter.default is parameter.empty
    return required or parameter.default is None or NoneType in kinds or parameter.annotation is Any


def _plain(value: Any) -> Any:
    """Config objects and tuples as what JSON holds."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
