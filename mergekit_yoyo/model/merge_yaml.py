"""The merge YAML, read for what it says about the merge: inputs, layers, tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mergekit_yoyo.errors import YoyoError, explain_invalid
from mergekit_yoyo.model.json_files import MOST_LAYERS, NAME_BYTES
from mergekit_yoyo.outside import load_yaml, read_text

if TYPE_CHECKING:
    from mergekit.common import ModelReference
    from mergekit.config import MergeConfiguration, OutputSliceDefinition

MERGE_FILE = "mergekit_config.yml"


@dataclass(frozen=True)
class ModelName:
    """A model as the YAML names it: a path, or a name on the Hub, with an optional revision."""

    path: str
    revision: str | None = None

    @property
    def on_hub(self) -> bool:
        """Whether this is a Hub name: `owner/name` or `name`, and no such path exists here."""
        local = self.path.startswith(("/", "~", ".")) or self.path.count("/") > 1
        return not local and not Path(self.path).exists()

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class MergeYaml:
    """A merge YAML; made by `read_merge_yaml`."""

    text: str
    config: "MergeConfiguration"
    inputs: list[ModelName]

    @property
    def method(self) -> str:
        """Name of the merge method."""
        return str(self.config.merge_method)

    @property
    def base(self) -> ModelName | None:
        """The base_model, which mergekit takes config and tokenizer from."""
        base = self.config.base_model
        return None if base is None else ModelName(base.model.path, base.model.revision)

    @property
    def builds_tokenizer(self) -> bool:
        """Whether mergekit makes the merge's tokenizer anew, so that no input has the same."""
        return bool(self.config.tokenizer or self.config.tokenizer_source)

    @property
    def layers(self) -> list[int] | None:
        """For each layer of the merge, the donor's layer it stands for; None: all, in order."""
        slices = self._slices
        if slices is None:
            return None
        return [index for part in slices for index in range(*part.sources[0].layer_range)]

    @property
    def _slices(self) -> "list[OutputSliceDefinition] | None":
        sliced = [self.config.slices]
        sliced += [module.slices for module in (self.config.modules or {}).values()]
        return next((slices for slices in sliced if slices), None)


def read_merge_yaml(file: Path) -> MergeYaml:
    """Read a merge YAML.

    Raises:
        YoyoError: the file cannot be read, or mergekit would not accept it.
    """
    return parse_merge_yaml(read_text(file), file)


def parse_merge_yaml(text: str, source: object) -> MergeYaml:
    """What a merge YAML says. source: where it comes from, for the message.

    Raises:
        YoyoError: mergekit would not accept it.
    """
    from mergekit.config import MergeConfiguration

    refused = f"{source}: mergekit would not accept this merge YAML"
    data = load_yaml(text, refused)
    try:
        config = MergeConfiguration.model_validate(data)
    except ValidationError as error:
        raise YoyoError(f"{refused}: {explain_invalid(error, data)}") from None
    except RuntimeError as error:  # mergekit's own validators
        raise YoyoError(f"{refused}: {error}") from None
    inputs = _inputs(config)
    _check_bounds(config, inputs, source)
    return MergeYaml(text, config, inputs)


def _check_bounds(config: "MergeConfiguration", inputs: list[ModelName], source: object) -> None:
    """Refuse names that no model can have, and slices that no model is deep enough for."""
    for name in inputs:
        parts = name.path.split("/")
        if "\0" in name.path or any(len(part.encode()) > NAME_BYTES for part in parts):
            raise YoyoError(f"{source}: no model can have the name {name.path[:60]!r}...")
    slices = list(config.slices or [])
    for module in (config.modules or {}).values():
        slices += module.slices or []
    for taken in (taken for part in slices for taken in part.sources):
        first, end = taken.layer_range
        said = f"{source}: layer_range [{first}, {end}] of {taken.model}"
        if not 0 <= first < end:
            raise YoyoError(f"{said} takes no layer: expected [first, end], end not included.")
        if end > MOST_LAYERS:
            raise YoyoError(f"{said} is deeper than any model.")
    deep = sum(end - first for part in slices for first, end in [part.sources[0].layer_range])
    if deep > MOST_LAYERS:
        raise YoyoError(f"{source}: {deep:,} layers are more than any model has.")


def references(config: "MergeConfiguration") -> "list[ModelReference]":
    """All models of a merge, in the order of the YAML, base_model last unless it is listed."""
    found = [model.model for model in config.models or []]
    parts = list(config.slices or [])
    for module in (config.modules or {}).values():
        found += [model.model for model in module.models or []]
        parts += module.slices or []
    found += [source.model for part in parts for source in part.sources]
    if config.base_model is not None:
        found.append(config.base_model)
    return list(dict.fromkeys(found))


def tokenizer_source(config: "MergeConfiguration") -> "ModelReference | None":
    """The model whose tokenizer the merge gets, where the YAML names one."""
    source = config.tokenizer.source if config.tokenizer else config.tokenizer_source
    return None if source is None or isinstance(source, str) else source


def _inputs(config: "MergeConfiguration") -> list[ModelName]:
    """All models that go in, in the order of the YAML; LoRA adapters after their models."""
    paths = [
        path for ref in references(config) for path in (ref.model, ref.lora) if path is not None
    ]
    return list(dict.fromkeys(ModelName(path.path, path.revision) for path in paths))
