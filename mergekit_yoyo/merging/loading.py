"""How a process of ours reads the inputs: each file is opened once."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.io.lazy_tensor_loader import LazyTensorLoader, ShardedTensorIndex
from mergekit.io.loader import TensorLoader
from mergekit.io.tasks import LoaderCache

from mergekit_yoyo.planning import own_device


class MappedPickle:
    """A .bin file whose tensors are mapped, not read; for `OpenInput`."""

    def __init__(self, file: Path) -> None:
        self._tensors: dict[str, torch.Tensor] = torch.load(
            file, map_location="cpu", weights_only=True, mmap=True
        )

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor, as mergekit's loaders give it."""
        return self._tensors[name]


class OpenInput(LazyTensorLoader):  # type: ignore[misc]  # mergekit is not typed
    """mergekit's loader, which keeps the files that it has opened: they are only mapped."""

    def __init__(self, index: ShardedTensorIndex, lazy_unpickle: bool) -> None:
        super().__init__(index, lazy_unpickle)
        self._opened: dict[str, Any] = {}

    def get_tensor(
        self,
        key: str,
        device: str = "cpu",
        aliases: list[str] | None = None,
        raise_on_missing: bool = True,
    ) -> torch.Tensor | None:
        """As mergekit's."""
        device = own_device(device)
        paths = self.index.tensor_paths
        name = next((n for n in (key, *(aliases or ())) if n in paths), None)
        if name is None:
            if raise_on_missing:
                raise KeyError(key)
            return None
        with self.lock:
            file = paths[name]
            if file not in self._opened:
                self._opened[file] = self._open(Path(self.index.base_path) / file, device)
            tensor: torch.Tensor = self._opened[file].get_tensor(name)
        return tensor.to(device)

    def _open(self, file: Path, device: str) -> Any:
        if file.suffix != ".safetensors" and not self.lazy_unpickle:
            with suppress(RuntimeError):  # what torch before 1.6 wrote cannot be mapped
                return MappedPickle(file)
        return TensorLoader.get(str(file), use_lazy_unpickle=self.lazy_unpickle, device=device)

    def flush(self) -> None:
        """Close all files."""
        with self.lock:
            self._opened.clear()


def open_inputs(models: Sequence[ModelReference]) -> None:
    """Let mergekit's tasks in this process read by `OpenInput`."""
    cache = LoaderCache()
    for model in models:
        loader = cache.get(model)
        if not isinstance(loader, OpenInput):
            cache.loaders[model] = OpenInput(loader.index, loader.lazy_unpickle)
