"""Checkpoints on disk: headers without data, tensors one by one, and files written as they come."""

import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.model.json_files import read_index

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

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

    def file_of(self, name: str) -> str:
        """The name of the file that holds a tensor."""
        return self._file_of[name]

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
    """The dtype that holds the most bytes of `tensors`.

    Raises:
        YoyoError: there are none.
    """
    if not tensors:
        raise YoyoError("the checkpoint's files hold no tensors.")
    sizes: Counter[torch.dtype] = Counter()
    for info in tensors.values():
        sizes[info.dtype] += info.nbytes
    return sizes.most_common(1)[0][0]


def read_header(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    """Names, shapes and dtypes of a safetensors file.

    Raises:
        YoyoError: the file is not there, damaged, or has a dtype that is not known here.
    """
    for name, dtype, shape in read_raw_header(file):
        if dtype not in DTYPES:
            raise YoyoError(f"{file}: {name} has dtype {dtype}, which is not supported.")
        yield name, TensorInfo(shape, DTYPES[dtype])


def read_pickled_header(file: Path) -> dict[str, TensorInfo]:
    """Shapes and dtypes of the tensors in a .bin file, whose data is not read.

    Raises:
        YoyoError: torch cannot read it.
    """
    try:
        mapped = zipfile.is_zipfile(file)  # torch before 1.6 wrote another format
        found = torch.load(file, map_location="meta", weights_only=True, mmap=mapped)
        tensors = {name: x for name, x in found.items() if isinstance(x, torch.Tensor)}
        return {name: TensorInfo(tuple(x.shape), x.dtype) for name, x in tensors.items()}
    except Exception as error:  # of many kinds
        raise YoyoError(f"{file}: cannot be read: {first_line(error)}") from None


def read_raw_header(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Names of a safetensors file, dtypes in the format's own words (of any kind), and shapes.

    Raises:
        YoyoError: the file is not there, or damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 -- not a dictionary
                part = opened.get_slice(name)
                yield name, part.get_dtype(), tuple(part.get_shape())
    except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: no room to map it
        raise YoyoError(f"{file}: this safetensors file cannot be read: {error}") from None


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
