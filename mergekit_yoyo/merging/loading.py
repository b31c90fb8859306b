"""How a process of ours reads the inputs: each file is opened once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.io.lazy_tensor_loader import LazyTensorLoader, ShardedTensorIndex
from mergekit.io.loader import TensorLoader
from mergekit.io.tasks import LoaderCache


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
        paths = self.index.tensor_paths
        name = next((n for n in (key, *(aliases or ())) if n in paths), None)
        if name is None:
            if raise_on_missing:
                raise KeyError(key)
            return None
        with self.lock:
            file = paths[name]
            if file not in self._opened:
                self._opened[file] = TensorLoader.get(
                    str(Path(self.index.base_path) / file),
                    use_lazy_unpickle=self.lazy_unpickle,
                    device=device,
                )
            tensor: torch.Tensor = self._opened[file].get_tensor(name)
        return tensor.to(device)

    def flush(self) -> None:
        """Close all files."""
        with self.lock:
            self._opened.clear()


def open_inputs(models: Sequence[ModelReference]) -> None:
    """Let mergekit's tasks in this process read by `OpenInput`."""
    cache = LoaderCache()
    for model in models:
        loader = cache.get(model)
        if not isinstance(loader, OpenInput) and loader.index.is_safetensors:
            cache.loaders[model] = OpenInput(loader.index, loader.lazy_unpickle)
