"""How a tensor that mergekit does not know is merged, by its headers: shape, vocabulary, dtype."""

from collections.abc import Mapping
from typing import Any

from mergekit.common import ModelReference

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.buffers import is_recomputed
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.planning.reading import Reader, reader_of

_VOCABULARY = ("embed_tokens.weight", "head.weight")


def form_of(name: str, held: Mapping[ModelReference, str]) -> dict[str, Any]:
    """What mergekit has to know of a tensor: its vocabulary axis, and a dtype that must stay.

    Args:
        name: in the merge.
        held: the name under which each model holds it.

    Raises:
        YoyoError: the models hold it in different shapes.
    """
    infos = {model: reader_of(model).info(stored) for model, stored in held.items()}
    known = {model: info for model, info in infos.items() if info is not None}
    tokens = name.endswith(_VOCABULARY) and all(
        info is not None and _has_row_a_token(reader_of(model), info)
        for model, info in infos.items()
    )
    if not tokens and len({info.shape for info in known.values()}) > 1:
        listed = ", ".join(f"{list(info.shape)} in {model}" for model, info in known.items())
        raise YoyoError(
            f"{name}: the inputs hold it in different shapes ({listed}), and mergekit would leave "
            "it out without a word. These models do not merge."
        )
    return {
        "vocabulary_axis": 0 if tokens else None,
        "force_dtype": _own_dtype(name, next(iter(known.values()), None)),
    }


def _has_row_a_token(reader: Reader, info: TensorInfo) -> bool:
    return bool(info.shape and info.shape[0] == reader.config.get_text_config().vocab_size)


def _own_dtype(name: str, info: TensorInfo | None) -> str | None:
    """The dtype of a tensor that the YAML's `dtype:` must not change: of indices and masks."""
    if info is None or (info.dtype.is_floating_point and not is_recomputed(name)):
        return None
    return str(info.dtype).removeprefix("torch.")
