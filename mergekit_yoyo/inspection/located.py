"""The inputs as mergekit sees them: references that find the models where we found them."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from mergekit.architecture.auto import infer_architecture_info
from mergekit.common import ModelReference
from mergekit.io import LazyTensorLoader, ShardedTensorIndex
from mergekit.io.tasks import LoaderCache
from mergekit.options import MergeOptions

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.inspection.inputs import Input
from mergekit_yoyo.inspection.remark import Remark, error
from mergekit_yoyo.method.plan_checks import check_model_files


class Located(ModelReference, frozen=True):  # type: ignore[misc, call-arg]  # not typed
    """A model of the YAML whose folder is known: mergekit's own would ask the Hub for it."""

    folder: Path
    indices: ClassVar[dict[Path, ShardedTensorIndex]] = {}

    def lazy_loader(
        self, cache_dir: str | None = None, lazy_unpickle: bool = True
    ) -> LazyTensorLoader:
        """A loader of the tensors in `folder`, or of their names only."""
        return LazyTensorLoader(self.indices[self.folder], lazy_unpickle)


@contextmanager
def quiet() -> Iterator[None]:
    """Without mergekit's own warnings: what matters of them is said in our words."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def located(
    inputs: Sequence[Input], options: MergeOptions
) -> Iterator[dict[ModelReference, Located]]:
    """Stand-ins for mergekit's references, which find the inputs where we found them."""
    infer_architecture_info.cache_clear()  # files may have changed since an earlier look
    cache = LoaderCache()
    cache.setup(options)
    models = {
        item.reference: Located(**dict(item.reference), folder=item.folder) for item in inputs
    }
    try:
        for item in inputs:
            if item.missing_bytes is None:
                index = ShardedTensorIndex.from_disk(str(item.folder))
            else:
                names = dict.fromkeys(item.tensors, "model.safetensors")
                index = ShardedTensorIndex(str(item.folder), True, names, [])
            _open(models[item.reference], index)
        yield models
    finally:
        for model in models.values():
            cache.loaders.pop(model, None)


def download(inputs: Sequence[Input], models: Mapping[ModelReference, Located]) -> None:
    """Bring the weights that are missing into the Hub cache, as the merge would.

    Raises:
        YoyoError: the Hub does not give them.
    """
    for item in inputs:
        if item.missing_bytes is not None:
            try:
                folder = item.reference.local_path(ignore_lora=True)
                _open(models[item.reference], ShardedTensorIndex.from_disk(folder))
            except Exception as wrong:  # the network, permissions, a full disk
                raise YoyoError(f"{item}: cannot be downloaded: {wrong}") from None


def _open(model: Located, index: ShardedTensorIndex) -> None:
    Located.indices[model.folder] = index
    LoaderCache().loaders[model] = model.lazy_loader()


def check_quantized(models: Iterable[Located]) -> list[Remark]:
    """Models with quantized weights, whose scales any merge would drop."""
    remarks = []
    for model in models:
        try:
            check_model_files([model])
        except YoyoError as wrong:
            remarks.append(error(str(wrong)))
    return remarks
