"""Checkpoints written as their tensors come: laid out first, then filled in place."""

import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import DTYPES, INDEX_FILE, TensorInfo

DEFAULT_SHARD_SIZE = "5GB"  # of the Hub and of transformers before version 5
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def shard(infos: Mapping[str, TensorInfo], max_shard_size: int | str) -> StateDictSplit:
    """How tensors are spread over files of at most `max_shard_size`.

    Raises:
        YoyoError: the size makes no sense.
    """
    try:
        return split_state_dict_into_shards_factory(
            dict(infos),
            get_storage_size=lambda info: info.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError:
        raise YoyoError(
            f"--max-shard-size: expected a size such as 5GB or 500MB; got {max_shard_size}."
        ) from None


def write_checkpoint(
    folder: Path,
    infos: Mapping[str, TensorInfo],
    tensors: Iterable[tuple[str, torch.Tensor]],
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
) -> list[str]:
    """Write tensors as they come into safetensors files in Hub style, with an index if several.

    The files are laid out from `infos` first and then filled in place, so that no more than one
    tensor is needed at a time. They are the bytes that `safetensors.torch.save_file` would write.

    Args:
        folder: an existing folder.
        infos: every tensor to come, in the order in which they are spread over the files.
        tensors: the tensors, in any order.
        max_shard_size: as in transformers, `5GB`, `500MB`, or bytes.

    Returns:
        The names of the files.

    Raises:
        YoyoError: a tensor is not as announced or does not come, or the size makes no sense.
    """
    split = shard(infos, max_shard_size)
    with ExitStack() as stack:
        shards: dict[str, ShardFile] = {}
        for file, names in split.filename_to_tensors.items():
            (folder / file).unlink(missing_ok=True)  # it may be a second name of another's file
            opened = stack.enter_context((folder / file).open("wb"))
            shards[file] = ShardFile(opened, {name: infos[name] for name in names})
        waiting = dict(split.tensor_to_filename)
        for name, tensor in tensors:
            expected = infos.get(name)
            got = TensorInfo(tuple(tensor.shape), tensor.dtype)
            if expected != got or name not in waiting:
                raise YoyoError(f"{name}: expected {expected} once; got {got}.")
            shards[waiting.pop(name)].write(name, tensor)
        if waiting:
            raise YoyoError(f"{len(waiting)} tensors did not come: {', '.join(list(waiting)[:3])}")
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX_FILE).unlink(missing_ok=True)
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return sorted(split.filename_to_tensors) + [INDEX_FILE] * split.is_sharded


class ShardFile:
    """A safetensors file whose header stands and whose data is still to come."""

    def __init__(self, file: BinaryIO, infos: Mapping[str, TensorInfo]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._file, self._offsets, end = file, {}, 0
        order = list(_NAMES)
        for name in sorted(infos, key=lambda name: (order.index(infos[name].dtype), name)):
            info = infos[name]
            header[name] = {
                "dtype": _NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [end, end + info.nbytes],
            }
            self._offsets[name] = end
            end += info.nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        self._start = file.tell()
        file.truncate(self._start + end)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        self._file.seek(self._start + self._offsets[name])
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        self._file.write(flat.numpy().data)
