"""A model folder before anything is loaded: its tensors, whether all are there, how stored."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import get_safetensors_metadata
from safetensors import SafetensorError, safe_open

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import (
    DTYPES,
    INDEX_FILE,
    SINGLE_FILE,
    Checkpoint,
    TensorInfo,
    read_pickled_header,
)
from mergekit_yoyo.model.json_files import read_index
from mergekit_yoyo.model.merge_yaml import ModelName

# What mergekit and transformers read weights from, each with its index.
WHOLE_FILES = (SINGLE_FILE, "pytorch_model.bin")
INDEX_FILES = (INDEX_FILE, "pytorch_model.bin.index.json")
_SAMPLED_BYTES = 1 << 20


def tensors_in(folder: Path) -> dict[str, TensorInfo | None] | None:
    """The tensors of a folder by name; without shape and dtype where only the index is at hand.

    None if it holds neither weights nor an index.

    Raises:
        YoyoError: the checkpoint is damaged.
    """
    for index in INDEX_FILES:
        if (folder / index).is_file():
            files = read_index(folder / index)
            whole = all((folder / file).is_file() for file in set(files.values()))
            if whole and index == INDEX_FILE:
                break
            if not whole:
                return dict.fromkeys(files)
            infos: dict[str, TensorInfo] = {}
            for file in sorted(set(files.values())):
                infos |= read_pickled_header(folder / file)
            return {name: infos.get(name) for name in files}
    if next(folder.glob("*.safetensors"), None) is not None:
        with Checkpoint(folder) as checkpoint:
            return dict(checkpoint.tensors)
    single = folder / "pytorch_model.bin"
    if single.is_file():
        return dict(read_pickled_header(single))
    return None


def tensors_on_hub(name: ModelName) -> dict[str, TensorInfo | None]:
    """The tensors of a model on the Hub, from the headers of its files.

    Raises:
        Exception: of many kinds: no safetensors, no network, no permission.
    """
    metadata = get_safetensors_metadata(name.path, revision=name.revision)
    return {
        tensor: TensorInfo(tuple(info.shape), DTYPES[info.dtype]) if info.dtype in DTYPES else None
        for header in metadata.files_metadata.values()
        for tensor, info in header.tensors.items()
    }


def is_whole(folder: Path) -> bool:
    """Whether all weight files are here that mergekit would read."""
    for single, index in zip(WHOLE_FILES, INDEX_FILES, strict=True):
        if (folder / index).is_file():
            files = set(read_index(folder / index).values())
            return all((folder / file).is_file() for file in files)
        if (folder / single).is_file():
            return True
    return False


def is_mlx(file: Path) -> bool:
    """Whether mlx wrote a weight file.

    Raises:
        YoyoError: it is a safetensors file and cannot be read.
    """
    if file.suffix != ".safetensors":
        return False
    try:
        with safe_open(file, framework="np") as opened:
            return (opened.metadata() or {}).get("format") == "mlx"
    except (SafetensorError, OSError) as error:
        raise YoyoError(f"{file}: not a readable safetensors file ({error}).") from None


def fingerprint(files: Iterable[Path]) -> str:
    """A hash that tells two exports apart: name, size, first and last MiB of each file.

    Reading 80 GB to resume a run would cost more than it saves.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLED_BYTES))
            content.seek(max(size - _SAMPLED_BYTES, 0))
            digest.update(content.read())
    return digest.hexdigest()


def describe_quantization(config: dict[str, Any]) -> dict[str, Any]:
    """The quantization that a `config.json` states: a label for people, and the settings as given.

    MLX keeps a default (`bits`, `group_size`, `mode`) and, by module, what differs from it.
    """
    settings = config.get("quantization") or config.get("quantization_config")
    if not settings:
        return {"label": config.get("dtype") or config.get("torch_dtype"), "settings": None}
    if method := settings.get("quant_method"):
        bits = settings.get("bits") or next(
            (bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None
        )
        return {"label": f"{method} {bits}-bit" if bits else method, "settings": settings}
    parts = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    widths = {part["bits"] for part in parts if "bits" in part}
    mode = settings.get("mode", "affine")
    label = "/".join(map(str, sorted(widths))) + f"-bit g{settings.get('group_size')}"
    if mode != "affine":
        label = mode if len(widths) == 1 else f"{mode} and {max(widths)}-bit"
    return {"label": label, "settings": settings}
