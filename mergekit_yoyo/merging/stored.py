"""What the inputs of a merge hold on their disks: the order of their tensors, and which files."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.model.merge_yaml import MergeYaml, references, tokenizer_source
from mergekit_yoyo.planning import reader_of

FileIdentity = tuple[int, int]  # size and time of change, in nanoseconds
Inputs = dict[str, dict[str, FileIdentity]]  # by folder and file
# The files of a folder that may decide what a merge of it is.
_DECIDING = (
    *("*.safetensors", "*.bin", "*.index.json", "*config.json", "*.py"),
    *("*token*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "chat_template*"),
)


class StoredModel:
    """One input, looked at through its headers only."""

    def __init__(self, model: ModelReference) -> None:
        self.model = model
        self._reader = reader_of(model)
        self.folder = Path(self._reader.index.base_path)

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


def identities_of(folders: Iterable[Path]) -> Inputs:
    """Size and time of the files in some folders that decide a merge, by folder and name."""
    found: Inputs = {}
    for folder in folders:
        files = {file for pattern in _DECIDING for file in folder.glob(pattern) if file.is_file()}
        found[str(folder)] = {file.name: file_identity(file) for file in sorted(files)}
    return found


def local_folders(merge_yaml: MergeYaml) -> list[Path]:
    """The folders of models and adapters that a YAML names, as it names them; those of the Hub are
    not among them."""
    source = tokenizer_source(merge_yaml.config)
    models = [*references(merge_yaml.config), *([source] if source else [])]
    names = [path.path for model in models for path in (model.model, model.lora) if path]
    return [Path(name) for name in dict.fromkeys(names) if Path(name).is_dir()]


def stored_models(models: Iterable[ModelReference]) -> dict[ModelReference, StoredModel]:
    """The inputs of a merge, found by mergekit's own loaders (and downloaded, if need be)."""
    return {model: StoredModel(model) for model in models}
