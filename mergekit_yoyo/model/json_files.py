"""JSON files of a model folder: config, index and tokenizer, checked as they are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergekit_yoyo.errors import YoyoError, explain_invalid
from mergekit_yoyo.outside import FILE_BYTES, check_regular, check_size, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME_BYTES = 255  # of a file, in every file system
MOST_LAYERS = 5_000

# bounds of sizes that a model is built from, some ten times those of the largest there are
_Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
_Experts = Annotated[int, Field(ge=0, le=10_000)]
_Width = Annotated[int, Field(ge=1, le=2**20)]
_Words = Annotated[int, Field(ge=1, le=2**24)]
_Heads = Annotated[int, Field(ge=1, le=2**14)]
_Ids = int | list[int] | None


class _Config(BaseModel):
    """The keys of a config.json that libraries count with or look into, where they are there."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model_type: str = ""
    architectures: list[str] | None = None
    num_hidden_layers: _Layers | None = None
    hidden_size: _Width | list[_Width] | None = None
    vocab_size: _Words | None = None
    num_attention_heads: _Heads | list[_Heads] | None = None
    num_experts: _Experts | list[_Experts] | None = None
    num_local_experts: _Experts | None = None
    n_routed_experts: _Experts | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None
    bos_token_id: _Ids = None
    eos_token_id: _Ids = None
    pad_token_id: _Ids = None
    dtype: str | dict[str, Any] | None = None
    torch_dtype: str | dict[str, Any] | None = None
    text_config: "_Config | None" = None


def read_config(file: Path) -> dict[str, Any]:
    """What a config.json holds, with every value as it is there.

    Raises:
        YoyoError: it cannot be read, or a value is not what any model has there.
    """
    values = read_json(file)
    try:
        _Config.model_validate(values)
    except ValidationError as error:
        raise YoyoError(f"{file}: {explain_invalid(error, values)}.") from None
    return values


def check_layers(config: dict[str, Any], tensors: int, file: Path) -> None:
    """Refuse a config with more layers than there are tensors, before anything is built of it.

    Raises:
        YoyoError: it asks for more.
    """
    layers = (config.get("text_config") or config).get("num_hidden_layers") or 0
    if layers > tensors:
        raise YoyoError(
            f"{file}: num_hidden_layers is {layers:,}, and the checkpoint has {tensors:,} tensors. "
            "Is it the config of another model?"
        )


def read_index(file: Path) -> dict[str, str]:
    """The `weight_map` of an index: the file of each tensor.

    Raises:
        YoyoError: it cannot be read, or holds no such map.
    """
    files = read_json(file).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise YoyoError(f"{file}: expected a `weight_map` of tensor names to files; got none.")
    for name in files.values():
        if len(name.encode()) > NAME_BYTES or "\0" in name or Path(name).name != name:
            shown = name if len(name) < 80 else f"{name[:60]}... ({len(name):,} characters)"
            raise YoyoError(f"{file}: expected names of files beside it; got {shown!r}.")
    return files


def read_tokenizer(file: Path) -> "Tokenizer":
    """The tokenizer in a tokenizer.json.

    Raises:
        YoyoError: the tokenizers library cannot read it.
    """
    from tokenizers import Tokenizer

    check_regular(file)
    check_size(file, FILE_BYTES)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # it raises Exception itself
        raise YoyoError(f"{file}: the tokenizers library cannot read it: {error}.") from None
