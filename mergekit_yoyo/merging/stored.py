"""What an input of a merge holds on its disk: headers by name, and the identity of its files."""

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from mergekit.architecture import WeightInfo
from mergekit.architecture.conversion import convert_checkpoint_tensors
from mergekit.common import ModelReference
from mergekit.io import ShardedTensorIndex
from mergekit.io.tasks import LoaderCache

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import TensorInfo, read_header

FileIdentity = tuple[int, int]  # size and time of change, in nanoseconds
_LAYER = re.compile(r"\.\d+\.")


class StoredModel:
    """One input as mergekit's loader finds it: read through its headers only."""

    def __init__(self, model: ModelReference, index: ShardedTensorIndex, model_type: str) -> None:
        self.model = model
        self.index = index
        self.model_type = model_type
        self.folder = Path(index.base_path)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of the user's, which may change, and no snapshot of the Hub's."""
        return Path(self.model.model.path).exists()

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Shape and dtype of each tensor; empty for a checkpoint that is not safetensors."""
        if not self.index.is_safetensors:
            return {}
        return {
            name: info
            for shard in self.index.shards
            for name, info in read_header(self.folder / shard.filename)
        }

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.tensors)}

    def position(self, name: str) -> tuple[int, str]:
        """Sorts names as they lie on the disk; converted ones by the first that they are made of"""
        found = self._positions.get(name)
        if found is None:
            sources = self.keys.near(name)
            found = min((self._positions.get(s, 0) for s in sources), default=len(self._positions))
        return found, name

    @cached_property
    def keys(self) -> "NearKeys":
        """The names, by layer."""
        return NearKeys(self.index.tensor_paths)

    def info(self, weight: WeightInfo) -> TensorInfo | None:
        """What mergekit will load for `weight`; None if it is not there, or headers do not tell."""
        for name in (weight.name, *(weight.aliases or ()), *(weight.tied_names or ())):
            if name in self.tensors:
                return self.tensors[name]
        for target in (weight.name, *(weight.aliases or ())):
            empty = {
                name: torch.empty(info.shape, dtype=info.dtype, device="meta")
                for name in self.keys.near(target)
                if (info := self.tensors.get(name)) is not None
            }
            tensor = convert_checkpoint_tensors(self.model_type, empty, target) if empty else None
            if tensor is not None:
                return TensorInfo(tuple(tensor.shape), tensor.dtype)
        return None

    def identity(self) -> dict[str, FileIdentity]:
        """Size and time of each of its files that a merge reads.

        Raises:
            YoyoError: a file is not there any more.
        """
        files = ["config.json", *(shard.filename for shard in self.index.shards)]
        files += [p.name for p in sorted(self.folder.glob("tokenizer*")) if p.is_file()]
        return {file: file_identity(self.folder / file) for file in files}


class NearKeys:
    """The names of a checkpoint by their layer: conversions never cross layers.

    mergekit matches every key of a checkpoint for every tensor that it converts, which takes
    minutes for a mixture of experts; it needs those of one layer.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._by_layer: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            for layer in set(_LAYER.findall(name)):
                self._by_layer[layer].append(name)

    def near(self, target: str) -> list[str]:
        """Names of the layer of `target`; all where it is in none."""
        layer = _LAYER.search(target)
        return self._names if layer is None else self._by_layer.get(layer[0], [])


def file_identity(file: Path) -> FileIdentity:
    """Size and time of change of a file.

    Raises:
        YoyoError: it is not there.
    """
    try:
        found = file.stat()
    except OSError as error:
        raise YoyoError(f"{file}: cannot be read ({error.strerror}).") from None
    return found.st_size, found.st_mtime_ns


def stored_models(models: Iterable[ModelReference]) -> dict[ModelReference, StoredModel]:
    """The inputs of a merge, found by mergekit's own loaders (and downloaded, if need be)."""
    cache = LoaderCache()
    trust = cache.trust_remote_code
    return {
        model: StoredModel(
            model, cache.get(model).index, model.config(trust_remote_code=trust).model_type
        )
        for model in models
    }
