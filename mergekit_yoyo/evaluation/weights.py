"""The size of a model: bytes of its tensors, and how many weights they stand for."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.measured import Weights
from mergekit_yoyo.outside import check_regular, load_json

_HEADER_BYTES = 100_000_000  # safetensors' own limit
_LENGTH_BYTES = 8
_OVERHEAD = (".scales", ".biases")  # of mlx's quantization
_WORD_BITS = 32  # mlx packs weights into words


def measure_weights(files: list[Path], config: dict[str, Any], *, mlx: bool) -> Weights:
    """Count the bytes of all tensors, and the weights that they stand for.

    Args:
        files: safetensors files; of others the size of the file counts, and nothing else is known.
        config: the model's config.json.
        mlx: mlx wrote them: packed words with scales beside, widths in the config.

    Raises:
        YoyoError: a header cannot be read.
    """
    if any(file.suffix != ".safetensors" for file in files):
        return Weights(bytes=sum(file.stat().st_size for file in files))
    tensors = {name: entry for file in files for name, entry in _header(file)}
    size = sum(stored for stored, _ in tensors.values())
    quantized = config.get("quantization") or config.get("quantization_config")
    if quantized and not mlx:  # packed in one of many ways
        return Weights(bytes=size)
    parameters = 0
    for name, (_, count) in tensors.items():
        module, _, kind = name.rpartition(".")
        if mlx and f"{module}.scales" in tensors:
            if f".{kind}" in _OVERHEAD:
                continue
            if kind == "weight":
                count = count * _WORD_BITS // _bits(quantized or {}, module)
        parameters += count
    return Weights(bytes=size, parameters=parameters, bits_per_weight=8 * size / parameters)


def _bits(quantized: dict[str, Any], module: str) -> int:
    own = quantized.get(module)
    bits = own.get("bits") if isinstance(own, dict) else quantized.get("bits")
    if not isinstance(bits, int) or not 1 <= bits <= _WORD_BITS:
        raise YoyoError(f"config.json: the quantization of {module}: expected bits; got {bits!r}.")
    return bits


def _header(file: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (bytes, elements)) of each tensor of a safetensors file, of whatever dtype."""
    check_regular(file)
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if not 0 < length <= _HEADER_BYTES:
            raise YoyoError(f"{file}: this is no safetensors file.")
        header = load_json(opened.read(length), file)
    if not isinstance(header, dict):
        raise YoyoError(f"{file}: this is no safetensors file.")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = entry["data_offsets"]
            yield name, (int(end) - int(begin), math.prod(map(int, entry["shape"])))
        except (KeyError, TypeError, ValueError):
            raise YoyoError(f"{file}: {name}: expected shape and offsets; got neither.") from None
