"""Whether the inputs are of one kind: architecture, config values, dtypes, heads, tensor names."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.inspection.inputs import Input
from mergekit_yoyo.inspection.remark import Remark, by_value, error, note, some, warning
from mergekit_yoyo.model.checkpoint import main_dtype
from mergekit_yoyo.model.config import comparable_config, load_config
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.model.names import any_index
from mergekit_yoyo.model.predictions import prediction_names, promised_predictions

HEADS = ("lm_head.weight", "embed_out.weight")
# Config keys that do not change what a model computes.
_HARMLESS = {
    *("use_cache", "initializer_range", "pretraining_tp", "architectures", "return_dict"),
    *("output_attentions", "output_hidden_states", "id2label", "label2id", "problem_type"),
    *("attention_dropout", "hidden_dropout", "max_window_layers", "chunk_size_feed_forward"),
}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_architectures(inputs: Sequence[Input], merge_yaml: MergeYaml) -> list[Remark]:
    """What keeps mergekit from planning: models of several kinds, or of several depths."""
    remarks = []
    for item in inputs:
        if len(item.config.get("architectures") or []) != 1:
            named = item.config.get("architectures")
            remarks.append(
                error(
                    f"{item}: mergekit needs one name in architectures of config.json; got {named}."
                )
            )
        try:
            load_config(item.folder)
        except YoyoError as wrong:
            remarks.append(error(f"{item}: {wrong}"))
    for key in ("model_type", "architectures"):
        values = [(_word(item.config.get(key)), str(item)) for item in inputs]
        if len(dict(values)) > 1:
            remarks.append(
                error(
                    f"{key} differs: {by_value(values)}. mergekit merges models of one "
                    "architecture only."
                )
            )
            break
    if merge_yaml.config.models and not remarks:
        depths = [(item.text_config.get("num_hidden_layers"), str(item)) for item in inputs]
        if len(dict(depths)) > 1:
            remarks.append(
                error(
                    f"numbers of layers differ: {by_value(depths)}. Say with `slices:` which "
                    "layers go together."
                )
            )
    return remarks + check_slices(inputs, merge_yaml)


def check_slices(inputs: Sequence[Input], merge_yaml: MergeYaml) -> list[Remark]:
    """Slices that take layers which their model does not have."""
    depths = {item.reference: item.text_config.get("num_hidden_layers") for item in inputs}
    sources = [x for part in merge_yaml.config.slices or [] for x in part.sources]
    found = {}
    for source in sources:
        first, end = source.layer_range
        depth = depths.get(source.model)
        if isinstance(depth, int) and end > depth:
            text = f"layer_range [{first}, {end}] of {source.model}, which has {depth} layers"
            found[text] = error(text)
    return list(found.values())


def check_configs(inputs: Sequence[Input]) -> list[Remark]:
    """Config values and special token ids that differ between inputs of one architecture."""
    remarks = []
    configs = [(_flat(comparable_config(item.folder)), str(item)) for item in inputs]
    keys = dict.fromkeys(key for config, _ in configs for key in config)
    differing = [key for key in keys if len({_word(c.get(key)) for c, _ in configs}) > 1]
    for key in differing:
        values = by_value((_word(config.get(key)), model) for config, model in configs)
        what = "config"
        if "rope" in key:
            what = "rope: their attention is made for other positions"
        remarks.append(warning(f"{key} differs ({what}): {values}"))
    for key in _TOKEN_IDS:
        ids = [
            (_word(item.text_config.get(key, item.config.get(key))), str(item)) for item in inputs
        ]
        if len(dict(ids)) > 1:
            remarks.append(warning(f"{key} differs (special token): {by_value(ids)}"))
    return remarks


def check_dtypes(inputs: Sequence[Input], merge_yaml: MergeYaml) -> list[Remark]:
    """Inputs whose weights are of different dtypes."""
    dtypes = []
    for item in inputs:
        infos = {name: info for name, info in item.tensors.items() if info is not None}
        if infos:
            dtypes.append((str(main_dtype(infos)).removeprefix("torch."), str(item)))
    if len({dtype for dtype, _ in dtypes}) < 2:
        return []
    config = merge_yaml.config
    became = config.out_dtype or config.dtype
    end = (
        f"the merge will be in {became}"
        if became
        else "without `dtype:` each tensor gets the widest"
    )
    return [warning(f"dtypes of the weights differ: {by_value(dtypes)}; {end}")]


def check_heads(inputs: Sequence[Input], merge_yaml: MergeYaml) -> list[Remark]:
    """Inputs of which some have an output head of their own and some tie it to the embedding."""
    own = [item for item in inputs if _has_head(item)]
    tied = {str(item): _is_tied(item) for item in inputs}
    remarks = [
        warning(f"{item}: no output head, and its config does not tie one (tie_word_embeddings)")
        for item in inputs
        if not _has_head(item) and not tied[str(item)]
    ]
    if own and len(own) < len(inputs):
        without = [str(item) for item in inputs if not _has_head(item)]
        text = (
            f"{some(own)}: an output head of its own, and {some(without)} tied to the embedding: "
            "the merge gets a head made of both"
        )
        donor = str(merge_yaml.config.base_model) if merge_yaml.config.base_model else None
        if donor is None or tied.get(donor):
            text += (
                ", which the tied config of its donor makes loaders ignore; "
                "`mergekit-yoyo finish` unties it"
            )
        remarks.append(warning(text))
    elif len(set(tied.values())) > 1:
        flags = by_value((value, model) for model, value in tied.items())
        remarks.append(warning(f"tie_word_embeddings differs: {flags}"))
    return remarks


def check_tensor_names(inputs: Sequence[Input]) -> list[Remark]:
    """Tensors that some inputs have and others lack, layers and experts put together."""
    names = {str(item): {any_index(name) for name in item.tensors} for item in inputs}
    everywhere = set[str].intersection(*names.values())
    extra: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in dict.fromkeys(name for model in names for name in sorted(names[model])):
        if name not in everywhere and not name.endswith(HEADS):
            extra[tuple(model for model in names if name in names[model])].append(name)
    return [
        warning(f"not in all inputs: {some(found)} (only in {some(models)})")
        for models, found in extra.items()
    ]


def check_predictions(inputs: Sequence[Input]) -> list[Remark]:
    """Configs that promise blocks for multi-token prediction which the files do not hold."""
    return [
        warning(
            f"{item}: its config promises blocks for multi-token prediction ({', '.join(keys)}), "
            "and its files hold none: loaders that use them will fail. The merge's config says 0 "
            "if the merge has none."
        )
        for item in inputs
        if (keys := promised_predictions(item.config)) and not prediction_names(item.tensors)
    ]


def donor_remark(merge_yaml: MergeYaml, differs: bool) -> Remark:
    """Who gives the merge its config and tokenizer."""
    built = ", the tokenizer is built" if merge_yaml.builds_tokenizer else ""
    what = "config" if built else "config and tokenizer"
    if merge_yaml.base is not None:
        return note(f"donor: {what} come from {merge_yaml.base} (base_model){built}")
    if not differs:
        return note(f"donor: {what} come from any of the inputs, which agree in them{built}")
    return warning(
        f"donor: without base_model mergekit takes {what} from inputs in random order, and they "
        f"differ{built}. Name one as base_model."
    )


def _is_tied(item: Input) -> bool:
    return bool(load_config(item.folder).get_text_config().tie_word_embeddings)


def _has_head(item: Input) -> bool:
    return any(name.endswith(HEADS) for name in item.tensors)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif key not in _HARMLESS:
            flat[f"{prefix}{key}"] = value
    return {key: value for key, value in flat.items() if key not in _TOKEN_IDS}


def _word(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
