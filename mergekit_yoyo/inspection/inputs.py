"""The models of a merge, looked at through their small files: config and tensor headers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, constants

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.inspection.remark import Remark, error, warning
from mergekit_yoyo.model.checkpoint import TensorInfo, main_dtype
from mergekit_yoyo.model.config import text_section
from mergekit_yoyo.model.folder import WHOLE_FILES, is_whole, tensors_in, tensors_on_hub
from mergekit_yoyo.model.json_files import check_layers, read_config
from mergekit_yoyo.model.merge_yaml import MergeYaml, ModelName, references, tokenizer_source
from mergekit_yoyo.model.place import locate
from mergekit_yoyo.outside import check_folder
from mergekit_yoyo.staging import format_bytes

if TYPE_CHECKING:
    from mergekit.common import ModelReference


@dataclass(frozen=True)
class Input:
    """One model. tensors: without shape and dtype where only names are at hand.

    missing_bytes: of its weights, what is still to be downloaded; None: everything is here.
    """

    reference: "ModelReference"
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo | None]
    missing_bytes: int | None = None

    def __str__(self) -> str:
        return str(self.reference)

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of its config.json that describes the language model."""
        return text_section(self.config)

    @property
    def summary(self) -> str:
        """Kind, depth, size and dtype of the model."""
        layers = self.text_config.get("num_hidden_layers")
        parts = [str(self.config.get("model_type")), f"{layers} layers" if layers else ""]
        infos = {name: info for name, info in self.tensors.items() if info is not None}
        if infos:
            count = sum(torch.Size(info.shape).numel() for info in infos.values())
            dtype = str(main_dtype(infos)).removeprefix("torch.")
            parts += [f"{count:,} parameters", dtype]
        if self.missing_bytes is not None:
            parts.append(f"{format_bytes(self.missing_bytes)} to download")
        return ", ".join(filter(None, parts))


def find_inputs(merge_yaml: MergeYaml) -> tuple[list[Input], list[Remark]]:
    """All models that go in, in the order of the YAML, and what is wrong with the way there.

    Of models on the Hub that are not in its cache, small files are downloaded, and headers asked
    for, but no weights.
    """
    found: list[Input] = []
    remarks: list[Remark] = []
    for reference in references(merge_yaml.config):
        paths = [path for path in (reference.model, reference.lora) if path is not None]
        names = [ModelName(path.path, path.revision) for path in paths]
        try:
            if reference.lora is not None:
                _folder(names[1])
                remarks.append(
                    warning(
                        f"{reference}: looked at without its LoRA adapter, and at no weights. "
                        "mergekit-yaml needs --lora-merge-cache for it; mergekit-yoyo merge does "
                        "not"
                    )
                )
            found.append(_look_at(reference, names[0]))
            remarks += [remark for name in names for remark in _check_name(name)]
        except YoyoError as wrong:
            remarks.append(error(str(wrong)))
    source = tokenizer_source(merge_yaml.config)
    if source is not None and source not in references(merge_yaml.config):
        try:
            _folder(ModelName(source.model.path, source.model.revision))
        except YoyoError as wrong:
            remarks.append(error(f"tokenizer source: {wrong}"))
    return found, remarks


def _look_at(reference: "ModelReference", name: ModelName) -> Input:
    folder = _folder(name)
    if not (folder / "config.json").is_file():
        raise YoyoError(f"{name}: there is no config.json in {folder}: this is no model folder.")
    config = read_config(folder / "config.json")
    if is_whole(folder):
        tensors = tensors_in(folder) or {}
        check_layers(config, len(tensors), folder / "config.json")
        return Input(reference, folder, config, tensors)
    if not name.on_hub:
        raise YoyoError(
            f"{name}: its weights are incomplete: mergekit looks for {' or '.join(WHOLE_FILES)}, "
            "or one with .index.json and all the files it lists. Copy or download them again."
        )
    if constants.HF_HUB_OFFLINE:
        raise YoyoError(
            f"{name}: its weights are not all in the Hub cache, and we are offline. Go online, or "
            f"download it first: hf download {name}"
        )
    tensors, size = _headers_on_hub(name)
    return Input(reference, folder, config, tensors, size)


def _folder(name: ModelName) -> Path:
    if name.path.startswith("~"):
        raise YoyoError(f"{name}: mergekit does not expand `~`. Write the whole path.")
    if Path(name.path).is_dir():
        check_folder(Path(name.path))
        return Path(name.path)
    if not name.on_hub:
        raise YoyoError(
            f"{name}: there is no such folder. Relative paths start at {Path.cwd()}, where the "
            "merge is run."
        )
    try:
        return locate(name)
    except YoyoError:
        raise YoyoError(
            f"{name}: neither a folder (relative paths start at {Path.cwd()}) nor a model of the "
            f"Hub that can be reached{' offline' if constants.HF_HUB_OFFLINE else ''}. Check the "
            "spelling; gated models need `hf auth login`."
        ) from None


def _check_name(name: ModelName) -> list[Remark]:
    """What mergekit makes of the name of a model when it writes the card, or downloads."""
    path = name.path
    if name.on_hub:
        if constants.HF_HUB_OFFLINE:
            return [
                error(
                    f"{name}: offline, mergekit does not merge models by their Hub name, even from "
                    "the cache. Give the folder of its snapshot, or go online."
                )
            ]
        return []
    if path.startswith(("/", "~", "./", "../")) or path.count("/") > 1 or not Path(path).is_dir():
        return []
    safe = f"Write ./{path}."
    if constants.HF_HUB_OFFLINE:
        return [
            error(
                f"{name}: mergekit takes this path for a Hub name when it writes the card, and "
                f"dies offline after the weights. {safe}"
            )
        ]
    return [
        warning(
            f"{name}: mergekit may take this path for a Hub name, and asks the Hub when it writes "
            f"the card. {safe}"
        )
    ]


def _headers_on_hub(name: ModelName) -> tuple[dict[str, TensorInfo | None], int]:
    try:
        tensors = tensors_on_hub(name)
        files = HfApi().model_info(name.path, revision=name.revision, files_metadata=True).siblings
    except Exception as wrong:  # of many kinds: no safetensors, no network, no permission
        raise YoyoError(f"{name}: the headers of its weights cannot be read: {wrong}") from None
    sizes = [file.size or 0 for file in files or [] if file.rfilename.endswith(".safetensors")]
    return tensors, sum(sizes)
