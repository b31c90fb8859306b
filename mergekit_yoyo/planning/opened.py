"""Which inputs mergekit has opened, and whether they are still what their names stand for.

mergekit keeps the inputs of all merges of a process under the names in their YAMLs, and what it
inferred of them. A name that is relative, or whose files were replaced, stands for another model at
the next merge, which would then get the weights of the first without a word.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit.architecture.auto import infer_architecture_info
from mergekit.common import ModelReference
from mergekit.io.lazy_tensor_loader import ShardedTensorIndex
from mergekit.io.tasks import LoaderCache

# a folder, and size and time of change of each file; None for one that is not there
_Identity = tuple[Path, tuple[tuple[int, int] | None, ...]]

_known: dict[ModelReference, tuple[ShardedTensorIndex, _Identity]] = {}


def is_opened(model: ModelReference) -> bool:
    """Whether mergekit has opened this input. Files of raw tensors it does not open so."""
    return model in LoaderCache.loaders


@contextmanager
def opened_anew() -> Iterator[None]:
    """While a merge is planned: inputs of earlier merges are read anew if they changed."""
    for model, (index, identity) in list(_known.items()):
        loader = LoaderCache.loaders.get(model)
        if loader is None:
            del _known[model]
        elif loader.index is index and _identity(index) != identity:
            del LoaderCache.loaders[model], _known[model]
    try:
        yield
    finally:
        infer_architecture_info.cache_clear()  # mergekit asks it before the plan, by name
        for model, loader in LoaderCache.loaders.items():
            if model not in _known or _known[model][0] is not loader.index:
                _known[model] = loader.index, _identity(loader.index)


def _identity(index: ShardedTensorIndex) -> _Identity:
    folder = Path(index.base_path).resolve()
    files = ["config.json", *sorted({str(file) for file in index.tensor_paths.values()})]
    return folder, tuple(_size_and_time(folder / file) for file in files)


def _size_and_time(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
