"""The finished config.json: the donor's, changed only where the merge differs from the donor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import TensorInfo, main_dtype
from mergekit_yoyo.model.config import config_from, meta_model, text_section
from mergekit_yoyo.model.predictions import set_predictions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Lists of layer indices, by the names they have in transformers' configurations.
_INDEX_LISTS = frozenset(
    {"mlp_only_layers", "moe_layers", "full_attn_idxs", "local_layer_ids", "rope_scaling_layers"}
)
# A list of one value per layer is known by its length; these are lists of other things.
_OTHER_LISTS = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id", "head_dims")
_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")


@dataclass
class FinishedConfig:
    """A config.json to write, and what a person should know about it."""

    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def finished_config(
    donor: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    layers: list[int] | None,
    merged: Mapping[str, Any] | None = None,
) -> FinishedConfig:
    """The donor's config.json, updated in what the merge changed.

    Args:
        donor: the donor's config.json.
        tensors: the merge's tensors, in either layout.
        layers: for each layer of the merge, the donor's layer it stands for; None: all, in order.
        merged: the merge's own config.json, if mergekit came to writing one.

    Raises:
        YoyoError: the layers of the YAML are not those of the weights, or cannot be expressed.
    """
    config, text = _copy(donor)
    result = FinishedConfig(config)
    model = meta_model(config_from(donor))

    _set_layers(text, donor, layers, result)
    _set_vocabulary(text, model, tensors)
    _set_head(config, model, tensors, merged or {}, result)
    dtype = str(main_dtype(tensors)).removeprefix("torch.")
    for section in (config, text):
        for key in ("torch_dtype", "dtype"):
            if key in section:
                section[key] = dtype
    for key in set_predictions(config, tensors):
        result.notes.append(
            f"config.json: the merge has no blocks for multi-token prediction: {key} is 0"
        )
    if "quantization_config" in config:
        del config["quantization_config"]
        result.notes.append("config.json: the donor is quantized, the merge is not: entry dropped")
    return result


def both_styles(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the spelling of transformers 5 and the one of before side by side.

    Raises:
        YoyoError: with both spellings, transformers would read another configuration.
    """
    modern: dict[str, Any] = config_from(values).to_dict()
    styled, section = _copy(values)
    for key, value in _all_spellings(text_section(modern)).items():
        section.setdefault(key, value)
    again = config_from(styled).to_dict()
    differing = sorted(k for k in modern if modern[k] != again.get(k))
    if differing:
        raise YoyoError(
            f"--config-style both: {', '.join(differing)} would be read differently with both "
            "spellings in one file. Use --config-style donor."
        )
    return styled


def _copy(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A copy of a config.json, and the part of it that describes the language model."""
    config = {**values}
    if not isinstance(config.get("text_config"), Mapping):
        return config, config
    config["text_config"] = {**config["text_config"]}
    return config, config["text_config"]


def _all_spellings(text: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers 5 renamed, under the new names and the old ones, from its own `to_dict`."""
    spellings = {key: text.get(key) for key in ("rope_parameters", "layer_types", "dtype")}
    spellings["torch_dtype"] = text.get("dtype")
    # {full_attention: {...}, sliding_attention: {...}} in models that rotate each kind differently
    rope = text.get("rope_parameters") or {}
    rope, local = rope.get("full_attention", rope), rope.get("sliding_attention", {})
    spellings["rope_theta"] = rope.get("rope_theta")
    spellings["partial_rotary_factor"] = rope.get("partial_rotary_factor")
    spellings["rope_local_base_freq"] = local.get("rope_theta")
    spellings["sliding_window_pattern"] = text.get("_sliding_window_pattern")
    for experts in ("num_experts", "num_local_experts"):
        spellings[experts] = text.get("num_experts", text.get("num_local_experts"))
    known = {key: value for key, value in spellings.items() if value is not None}
    if rope:
        elsewhere = ("rope_theta", "partial_rotary_factor")
        scaling = {key: value for key, value in rope.items() if key not in elsewhere}
        plain = scaling.get("rope_type", "default") == "default"
        known["rope_scaling"] = None if plain else scaling  # loaders ask for the key as well
    return known


def _set_layers(
    text: dict[str, Any],
    donor: Mapping[str, Any],
    layers: list[int] | None,
    result: FinishedConfig,
) -> None:
    count_key = next((key for key in _LAYER_COUNTS if key in text), None)
    if count_key is None or layers is None or layers == list(range(text[count_key])):
        return
    length = text[count_key]
    if max(layers) >= length:
        raise YoyoError(
            f"merge YAML: a slice ends at layer {max(layers) + 1}; the donor has {length} layers."
        )
    before = _derived_types(donor)
    text[count_key] = len(layers)
    for key, value in list(text.items()):
        if key in _INDEX_LISTS and value:
            text[key] = [new for new, old in enumerate(layers) if old in value]
        elif isinstance(value, list) and len(value) == length and key not in _OTHER_LISTS:
            text[key] = [value[old] for old in layers]
    if text.get("first_k_dense_replace"):
        dense = [old < text["first_k_dense_replace"] for old in layers]
        if sorted(dense, reverse=True) != dense:
            raise YoyoError(
                "merge YAML: its slices put a dense layer after a mixture-of-experts layer, which "
                f"first_k_dense_replace ({text['first_k_dense_replace']}) cannot express."
            )
        text["first_k_dense_replace"] = sum(dense)
    # A pattern (every sixth layer is global) may not survive the slices: then each layer's own
    # type is written out.
    if before:
        wanted = [before[old] for old in layers]
        if _derived_types(result.values) != wanted:
            text["layer_types"] = wanted
            result.notes.append(
                "config.json: layer_types added: the slices break the donor's regular pattern of "
                "attention layers, which loaders that know no layer_types will assume"
            )


def _derived_types(values: Mapping[str, Any]) -> list[str] | None:
    """The kind of each layer as transformers understands a config, whichever way it is spelled."""
    try:
        types: list[str] | None = getattr(
            config_from(values).get_text_config(), "layer_types", None
        )
    except YoyoError:  # lists and counts that do not fit are what this is asked about
        return None
    return types


def _set_vocabulary(
    text: dict[str, Any], model: "PreTrainedModel", tensors: Mapping[str, TensorInfo]
) -> None:
    embedding = tensors.get(parameter_name(model, model.get_input_embeddings()) or "")
    if embedding is not None and "vocab_size" in text:
        text["vocab_size"] = embedding.shape[0]


def _set_head(
    config: dict[str, Any],
    model: "PreTrainedModel",
    tensors: Mapping[str, TensorInfo],
    merged: Mapping[str, Any],
    result: FinishedConfig,
) -> None:
    head = parameter_name(model, model.get_output_embeddings())
    if head is None:
        return
    tied = bool(model.config.tie_word_embeddings)
    if tied and head in tensors:
        config["tie_word_embeddings"] = False
        result.notes.append(f"config.json: the merge has its own {head}, so it is untied")
    elif not tied and head not in tensors and merged.get("tie_word_embeddings"):
        config["tie_word_embeddings"] = True
        result.notes.append(f"config.json: the merge has no {head}, so it is tied")


def parameter_name(model: "PreTrainedModel", module: Any) -> str | None:
    """The name of `module`'s weight in `model`; None if it is not one of its modules."""
    for name, candidate in model.named_modules():
        if candidate is module:
            return f"{name}.weight"
    return None
