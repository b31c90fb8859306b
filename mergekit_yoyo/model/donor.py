"""The donor: the model whose checkpoint, config and tokenizer a merge shall look like."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mergekit_yoyo import card as cards
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.model.config import comparable_config
from mergekit_yoyo.model.folder import tensors_in, tensors_on_hub
from mergekit_yoyo.model.merge_yaml import MERGE_FILE, MergeYaml, ModelName, read_merge_yaml
from mergekit_yoyo.model.place import locate
from mergekit_yoyo.model.tokenizer import same_tokenizer


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
        found = tensors_in(self.folder)
        if found is not None:
            return found
        if not self.name.on_hub:
            raise YoyoError(f"{self.folder}: the donor has no weights, so its layout is unknown.")
        try:
            return tensors_on_hub(self.name)
        except Exception as error:
            raise YoyoError(
                f"{self.name}: its tensor names are not in the Hub cache and could not be asked "
                f"for ({error}). Go online, or give --donor FOLDER."
            ) from None


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
        return Donor(name, _located(name), merge_yaml.layers)
    return _follow(merge_yaml, merge, seen=[merge.resolve()])


def _located(name: ModelName) -> Path:
    try:
        return locate(name)
    except YoyoError as error:
        raise YoyoError(
            f"{error} Relative paths are those of the folder the merge was run in (now: "
            f"{Path.cwd()}): run this there, or give --donor PATH_OR_REPO."
        ) from None


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
    folder = _located(name)
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
        folder = _located(name)
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
