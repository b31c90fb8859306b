"""A model to evaluate: found, checked, and what is recorded of it, before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.folder import describe_quantization, fingerprint, is_mlx
from mergekit_yoyo.model.json_files import read_config
from mergekit_yoyo.model.merge_yaml import ModelName
from mergekit_yoyo.model.place import fetch
from mergekit_yoyo.model.tokenizer import VOCABULARY_FILES, chat_template, has_tokenizer
from mergekit_yoyo.outside import check_folder

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk. `given` is what the user wrote; `backend` the harness's name of its loader.

    `weights` are its weight files, `config` what its config.json holds. `quantization` has a
    `label` for people (`4-bit g64`, `mxfp4`, `bfloat16`) and the `settings` that the folder's
    config states, None if it is not quantized.
    """

    given: str
    path: Path
    backend: Literal["hf", "mlxlm"]
    weights: list[Path]
    config: dict[str, Any]
    quantization: dict[str, Any]
    has_chat_template: bool
    fingerprint: str

    @property
    def name(self) -> str:
        """The folder's or repository's name, as given: a link keeps its own."""
        name = Path(self.given).name
        return self.path.name if name in {"", ".."} else name


def open_model(given: str) -> ModelFolder:
    """Find the model `given` as a folder, or by its name on the Hub (downloaded if need be).

    Raises:
        YoyoError: there is no such folder or model, or it holds no config, weights or tokenizer.
    """
    folder = Path(given).expanduser()
    path = folder.resolve() if folder.is_dir() else fetch(ModelName(given), WEIGHTS)
    check_folder(path)
    if not (path / "config.json").exists():
        raise YoyoError(f"{path}: not a model folder: it has no config.json.")
    config = read_config(path / "config.json")
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    if not weights:
        raise YoyoError(f"{given}: no weights (*.safetensors) in this folder.")
    if not has_tokenizer(path):
        raise YoyoError(
            f"{given}: no tokenizer ({', '.join(VOCABULARY_FILES)}) in this folder. Copy the files "
            "of one of the merged models here; `mergekit-yaml` writes them with --copy-tokenizer."
        )
    return ModelFolder(
        given=given,
        path=path,
        backend="mlxlm" if is_mlx(weights[0]) else "hf",
        weights=weights,
        config=config,
        quantization=describe_quantization(config),
        has_chat_template=bool(chat_template(path)),
        fingerprint=fingerprint([path / "config.json", *weights]),
    )
