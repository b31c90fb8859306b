"""Checkpoints on disk: headers without data, tensors one by one, and files written as they come."""

import json
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from mergekit_yoyo.errors import YoyoError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DEFAULT_SHARD_SIZE = "5GB"  # of the Hub and of transformers before version 5

# The names that the safetensors format has for dtypes, in the order in which it stores them: wide
# ones first keeps every tensor aligned.
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor that is not in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size of its data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Checkpoint:
    """The safetensors files of a model folder; a context manager.

    `tensors` has every tensor's shape and dtype by name, in the order of `files`; data is read
    from disk only by `read`.

    Raises:
        YoyoError: the folder has no safetensors files; one of them or the index is damaged or
            missing; or files of another checkpoint are among them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _weight_files(folder)
        self._open = ExitStack()
        self._handles: dict[str, Any] = {}

        self.tensors: dict[str, TensorInfo] = {}
        self._file_of: dict[str, str] = {}
        for file in self.files:
            infos = dict(read_header(folder / file))
            twice = next((name for name in infos if name in self.tensors), None)
            if twice is not None:
                raise YoyoError(
                    f"{folder}: {twice} is in {self._file_of[twice]} and in {file}. Remove the "
                    "file that is left from another run."
                )
            self.tensors |= infos
            self._file_of |= dict.fromkeys(infos, file)

    @property
    def nbytes(self) -> int:
        """Size of all data."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, read from disk now."""
        file = self._file_of[name]
        if file not in self._handles:
            handle = safe_open(self.folder / file, framework="pt")
            self._handles[file] = self._open.enter_context(handle)
        tensor: torch.Tensor = self._handles[file].get_tensor(name)
        return tensor

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handles.clear()
        self._open.close()


def main_dtype(tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """The dtype that holds the most bytes of `tensors`."""
    sizes: Counter[torch.dtype] = Counter()
    for info in tensors.values():
        sizes[info.dtype] += info.nbytes
    return sizes.most_common(1)[0][0]


def read_header(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    """Names, shapes and dtypes of a safetensors file.

    Raises:
        YoyoError: the file is not there, damaged, or has a dtype that is not known here.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 -- not a dictionary
                part = opened.get_slice(name)
                dtype = part.get_dtype()
                if dtype not in DTYPES:
                    raise YoyoError(f"{file}: {name} has dtype {dtype}, which is not supported.")
                yield name, TensorInfo(tuple(part.get_shape()), DTYPES[dtype])
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: no room to map it
        raise YoyoError(f"{file}: this safetensors file cannot be read: {error}") from None


def shard(infos: Mapping[str, TensorInfo], max_shard_size: str) -> StateDictSplit:
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
    max_shard_size: str = DEFAULT_SHARD_SIZE,
) -> list[str]:
    """Write tensors as they come into safetensors files in Hub style, with an index if several.

    The files are laid out from `infos` first and then filled in place, so that no more than one
    tensor is needed at a time. They are the bytes that `safetensors.torch.save_file` would write.

    Args:
        folder: an existing folder.
        infos: every tensor to come, in the order in which they are spread over the files.
        tensors: the tensors, in any order.
        max_shard_size: as in transformers, `5GB` or `500MB`.

    Returns:
        The names of the files.

    Raises:
        YoyoError: a tensor is not as announced or does not come, or the size makes no sense.
    """
    split = shard(infos, max_shard_size)
    with ExitStack() as stack:
        shards: dict[str, _Shard] = {}
        for file, names in split.filename_to_tensors.items():
            (folder / file).unlink(missing_ok=True)  # it may be a second name of another's file
            opened = stack.enter_context((folder / file).open("wb"))
            shards[file] = _Shard(opened, {name: infos[name] for name in names})
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


class _Shard:
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


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file of a model folder holds.

    Raises:
        YoyoError: it cannot be read, or does not hold a mapping.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise YoyoError(f"{file}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise YoyoError(f"{file}: expected a JSON object; got {type(values).__name__}.")
    return values


def read_index(file: Path) -> dict[str, str]:
    """The `weight_map` of an index: the file of each tensor.

    Raises:
        YoyoError: it cannot be read, or holds no such map.
    """
    files = read_json(file).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise YoyoError(f"{file}: expected a `weight_map` of tensor names to files; got none.")
    return files


def _weight_files(folder: Path) -> list[str]:
    index = folder / INDEX_FILE
    present = {path.name for path in folder.glob("model*.safetensors")}
    if index.is_file():
        named = set(read_index(index).values())
        missing = sorted(file for file in named if not (folder / file).is_file())
        if missing:
            raise YoyoError(
                f"{folder}: {INDEX_FILE} names {len(named)} files; {len(missing)} of them are not "
                f"there: {', '.join(missing[:3])}. Was the download or merge cut short?"
            )
        if present - named:
            raise YoyoError(
                f"{folder}: {', '.join(sorted(present - named)[:3])} is not named in {INDEX_FILE}: "
                "remove it if it is left from another run, else the index."
            )
        files = sorted(named)
    else:
        files = sorted(present or {path.name for path in folder.glob("*.safetensors")})
    if not files:
        raise YoyoError(f"{folder}: expected a model with .safetensors files; there are none.")
    return files
