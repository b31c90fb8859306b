"""The donor: the model whose checkpoint, config and tokenizer a merge shall look like."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import get_safetensors_metadata, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mergekit_yoyo import card as cards
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import INDEX_FILE, Checkpoint, TensorInfo
from mergekit_yoyo.model.config import comparable_config
from mergekit_yoyo.model.json_files import read_index
from mergekit_yoyo.model.merge_yaml import MERGE_FILE, MergeYaml, ModelName, read_merge_yaml
from mergekit_yoyo.model.tokenizer import same_tokenizer
from mergekit_yoyo.outside import check_folder

# What is fetched of a model on the Hub: everything but weights.
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "*.md", "*.yml"]


@dataclass(frozen=True)
class Donor:
    """A model that is no mergekit output, and which of its layers each layer of the merge is."""

    name: ModelName
    folder: Path
    layers: list[int] | None

    def tensors(self) -> dict[str, TensorInfo | None]:
        """Its tensors by name; without shape and dtype where only the index is at hand.

        Raises:
            YoyoError: the checkpoint is damaged, or its index cannot be had.
        """
        for index in (INDEX_FILE, "pytorch_model.bin.index.json"):
            if (self.folder / index).is_file():
                files = read_index(self.folder / index)
                whole = all((self.folder / file).is_file() for file in set(files.values()))
                if whole and index == INDEX_FILE:
                    break
                return dict.fromkeys(files)
        if next(self.folder.glob("*.safetensors"), None) is not None:
            with Checkpoint(self.folder) as checkpoint:
                return dict(checkpoint.tensors)
        single = self.folder / "pytorch_model.bin"
        if single.is_file():
            state = torch.load(single, map_location="meta", weights_only=True, mmap=True)
            return {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in state.items()}
        if not self.name.on_hub:
            raise YoyoError(f"{self.folder}: the donor has no weights, so its layout is unknown.")
        try:
            metadata = get_safetensors_metadata(self.name.path, revision=self.name.revision)
        except Exception as error:
            raise YoyoError(
                f"{self.name}: its tensor names are not in the Hub cache and could not be asked "
                f"for ({error}). Go online, or give --donor FOLDER."
            ) from None
        return dict.fromkeys(metadata.weight_map)


def find_donor(merge_yaml: MergeYaml, merge: Path, given: str | None = None) -> Donor:
    """The donor of the merge in folder `merge`.

    It is `given`, else the YAML's base_model, else the first input whose config and tokenizer
    are those of the merge (mergekit takes each from any of the inputs). One that is itself
    mergekit output is followed to a model that is not; `given` is taken as it is.

    Raises:
        YoyoError: a model is not found, none matches, or the merges go round in a circle.
    """
    if given is not None:
        name = ModelName(given)
        return Donor(name, locate(name), merge_yaml.layers)
    return _follow(merge_yaml, merge, seen=[merge.resolve()])


def locate(name: ModelName) -> Path:
    """The folder of a model: a local one, its snapshot in the Hub cache, or its small files there.

    Raises:
        YoyoError: it is neither a folder, nor cached, nor to be had from the Hub.
    """
    path = Path(name.path).expanduser()
    if path.is_dir():
        check_folder(path)
        return path
    missing = YoyoError(
        f"{name}: neither a folder nor a model of the Hub that can be reached from here. Relative "
        f"paths are those of the folder the merge was run in (now: {Path.cwd()}): run this there, "
        "or give --donor PATH_OR_REPO."
    )
    if not name.on_hub:
        raise missing
    try:
        cached = snapshot_download(name.path, revision=name.revision, local_files_only=True)
        if (Path(cached) / "config.json").is_file():
            check_folder(Path(cached))
            return Path(cached)
    except LocalEntryNotFoundError:
        pass
    except HFValidationError:
        raise missing from None
    try:
        return Path(
            snapshot_download(name.path, revision=name.revision, allow_patterns=SMALL_FILES)
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        raise missing from None


def card_of(name: ModelName) -> str | None:
    """The model card of an input, where it is at hand or can be downloaded; None if not.

    Raises:
        YoyoError: it is no text in UTF-8.
    """
    if name.on_hub:
        try:
            file = Path(hf_hub_download(name.path, "README.md", revision=name.revision))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, HFValidationError):
            return None
    else:
        file = Path(name.path).expanduser() / "README.md"
    return cards.read_card(file) if file.is_file() else None


def _follow(merge_yaml: MergeYaml, merge: Path, seen: list[Path]) -> Donor:
    name = merge_yaml.base or _matching_input(merge_yaml, merge)
    folder = locate(name)
    if not (folder / MERGE_FILE).is_file():
        return Donor(name, folder, merge_yaml.layers)
    if folder.resolve() in seen:
        raise YoyoError(
            f"{name}: this merge goes into itself ({MERGE_FILE} of each stage names the next). "
            "Give --donor PATH_OR_REPO."
        )
    earlier = _follow(read_merge_yaml(folder / MERGE_FILE), folder, [*seen, folder.resolve()])
    return Donor(earlier.name, earlier.folder, _composed(earlier.layers, merge_yaml.layers))


def _composed(earlier: list[int] | None, later: list[int] | None) -> list[int] | None:
    if earlier is None or later is None:
        return later if earlier is None else earlier
    return [earlier[index] for index in later]


def _matching_input(merge_yaml: MergeYaml, merge: Path) -> ModelName:
    """The first input from which mergekit can have taken config and tokenizer."""
    if not (merge / "config.json").is_file():  # the run died before it took either
        return merge_yaml.inputs[0]
    merged = comparable_config(merge)
    differing = []
    for name in merge_yaml.inputs:
        folder = locate(name)
        if not (folder / "config.json").is_file():  # a LoRA adapter
            continue
        if comparable_config(folder) != merged:
            differing.append(f"{name} (config)")
        elif not merge_yaml.builds_tokenizer and not same_tokenizer(folder, merge):
            differing.append(f"{name} (tokenizer)")
        else:
            return name
    raise YoyoError(
        f"{merge}: its config and tokenizer are those of none of its inputs: these differ: "
        f"{', '.join(differing)}. Without base_model, mergekit takes each from any of them. "
        "Name the one to follow with --donor PATH_OR_REPO."
    )
