"""config.json of a model: the one reader, the model class that it names, and what compares."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.json_files import read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Config keys that a merge may set without being of another model.
_MERGED_KEYS = {
    *("transformers_version", "dtype", "_name_or_path", "vocab_size", "num_hidden_layers"),
    *("layer_types", "mlp_only_layers", "first_k_dense_replace", "tie_word_embeddings"),
    *("quantization_config", "bos_token_id", "eos_token_id", "pad_token_id"),
}


def load_config(folder: Path) -> "PretrainedConfig":
    """The configuration of the model in `folder`, as transformers reads it (offline).

    Raises:
        YoyoError: there is no config.json, or transformers cannot make sense of it.
    """
    if not (folder / "config.json").is_file():
        raise YoyoError(f"{folder}: expected a model folder; it has no config.json.")
    return config_from(read_config(folder / "config.json"))


def config_from(values: Mapping[str, Any]) -> "PretrainedConfig":
    """A configuration from what a config.json holds, in whichever spelling.

    transformers 5 writes infinities as `{"__float__": "Infinity"}`, which `from_dict` alone takes
    for a value.

    Raises:
        YoyoError: transformers does not know the model type or refuses a value.
    """
    import transformers

    kind = values.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise YoyoError(
            f"config.json: model_type is {kind!r}, which transformers {transformers.__version__} "
            "does not know. Upgrade transformers."
        )
    try:
        config_class = transformers.CONFIG_MAPPING[kind]
        decoded = config_class._decode_special_floats(dict(values))
        config: PretrainedConfig = config_class.from_dict(decoded)
    except Exception as error:  # validators of many kinds
        raise YoyoError(f"config.json: transformers refuses it: {error}") from None
    if not has_language_settings(config):
        raise YoyoError("config.json: text_config holds no settings of a language model.")
    return config


def has_language_settings(config: "PretrainedConfig") -> bool:
    """Whether its part for the language model is one: what is no mapping of settings stays as it
    was written."""
    import transformers

    return isinstance(config.get_text_config(), transformers.PretrainedConfig)


def is_whole_model(name: str, found: object) -> bool:
    """Whether what transformers has by this name is a model class, and not only what those of a
    family share."""
    import transformers

    return (
        isinstance(found, type)
        and issubclass(found, transformers.PreTrainedModel)
        and not name.endswith("PreTrainedModel")
    )


def text_section(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes the language model.

    That is the whole, or lies one level deeper in models of several modalities.
    """
    return dict(values.get("text_config") or values)


def comparable_config(folder: Path) -> dict[str, Any]:
    """A config as transformers reads it, without what merging changes."""
    values: Mapping[str, Any] = load_config(folder).to_dict()
    length = values.get("num_hidden_layers")
    return {
        key: value
        for key, value in values.items()
        if key not in _MERGED_KEYS and not (isinstance(value, list) and len(value) == length)
    }


def meta_model(config: "PretrainedConfig | Path", stored: Iterable[str] = ()) -> "PreTrainedModel":
    """The transformers model of `config` (or of the folder that holds it), without any data.

    Args:
        config: as above.
        stored: names of a checkpoint, whose prefixes a conversion back shall restore.

    Raises:
        YoyoError: no usable config.json, or an architecture that transformers does not have.
    """
    from transformers.initialization import no_init_weights

    if isinstance(config, Path):
        config = load_config(config)
    name, found = model_class(config)
    try:
        with torch.device("meta"), no_init_weights():
            model: PreTrainedModel = (
                found.from_config(config) if name.startswith("Auto") else found(config)
            )
    except Exception as error:  # a model fails on impossible values in ways of its own
        raise YoyoError(f"config.json: transformers cannot build {name} of it: {error}.") from None
    # What transformers' revert looks up anew for each call; kept here, as `from_pretrained` does.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    conversions = get_model_conversion_mapping(model, add_legacy=False)
    for name in stored:
        for conversion in conversions:
            name, _ = conversion.rename_source_key(name)
    model._weight_conversions = [
        conversion
        for conversion in conversions
        if not isinstance(conversion, PrefixChange) or conversion.was_used()
    ]
    return model


def model_class(config: "PretrainedConfig") -> tuple[str, Any]:
    """Name and class of the model that `architectures` names; by default the one of the type.

    Raises:
        YoyoError: transformers has no model of that name.
    """
    import transformers

    name = (config.architectures or ["AutoModelForCausalLM"])[0]
    found = getattr(transformers, name, None)
    is_auto = name.startswith("Auto") and hasattr(found, "from_config")
    if not is_whole_model(name, found) and not (is_auto and isinstance(found, type)):
        raise YoyoError(
            f"config.json: architectures names {name}; transformers {transformers.__version__} "
            "has no such class, so its checkpoint layout is not known. Upgrade transformers."
        )
    return name, found
