"""What the inputs of a merge hold on their disks: the order of their tensors, and which files."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.planning import reader_of

FileIdentity = tuple[int, int]  # size and time of change, in nanoseconds


class StoredModel:
    """One input, looked at through its headers only."""

    def __init__(self, model: ModelReference) -> None:
        self.model = model
        self._reader = reader_of(model)
        self.folder = Path(self._reader.index.base_path)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of the user's, which may change, and no snapshot of the Hub's."""
        return Path(self.model.model.path).exists()

    def info(self, weight: WeightInfo) -> TensorInfo | None:
        """What mergekit will load for `weight`; None if it is not there, or headers do not tell."""
        return self._reader.loads(weight)[1]

    def position(self, weight: WeightInfo) -> tuple[int, str]:
        """Sorts weights as they lie on the disk, converted ones by the first of their tensors."""
        names = self._reader.read_from(weight)
        return min((self._positions[name] for name in names), default=0), str(weight.name)

    @cached_property
    def _positions(self) -> dict[str, int]:
        shards = self._reader.index.shards
        return {
            name: k
            for k, name in enumerate(name for shard in shards for name in shard.contained_keys)
        }

    def identity(self) -> dict[str, FileIdentity]:
        """Size and time of each of its files that a merge reads.

        Raises:
            YoyoError: a file is not there any more.
        """
        files = ["config.json", *(shard.filename for shard in self._reader.index.shards)]
        files += [p.name for p in sorted(self.folder.glob("tokenizer*")) if p.is_file()]
        return {file: file_identity(self.folder / file) for file in files}


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
    return {model: StoredModel(model) for model in models}
