"""Where a model comes from: a folder or a Hub name, checked before anything is computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.merge_yaml import ModelName
from mergekit_yoyo.model.place import fetch
from mergekit_yoyo.model.tokenizer import VOCABULARY_FILES, has_tokenizer
from mergekit_yoyo.outside import check_folder, read_json

# What an export takes along as it is; config.json, weights and the card are written anew.
CARRIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
    "*.model", "*.tiktoken", "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*",
    "mergekit_config.yml",
)  # fmt: skip
PROCESSOR = "*processor_config.json"


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk.

    Attributes:
        folder: where it lies.
        repo: its Hub name, if it came from there.
        config: its parsed `config.json`.
    """

    folder: Path
    repo: str | None
    config: dict[str, Any]

    def carried_files(self, *, pictures: bool = False) -> list[Path]:
        """Tokenizer, other files, and a processor of pictures, that an export copies unchanged."""
        patterns = [*CARRIED, *([PROCESSOR] if pictures else [])]
        found = {path for pattern in patterns for path in self.folder.glob(pattern)}
        return sorted(path for path in found if path.is_file())


def open_source(source: str | Path, *, revision: str | None = None) -> Source:
    """The checkpoint at `source`, downloaded first if it is a Hub name, and checked.

    Args:
        source: a folder, or `owner/name` on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        YoyoError: no such folder or repo, no model in it, shards or the tokenizer are missing, or
            its weights are quantized already.
    """
    from mlx_lm.utils import load_config

    from mergekit_yoyo.model.json_files import check_layers, read_config

    folder, repo = Path(source).expanduser(), None
    if not folder.exists():
        repo = str(source)
        folder = fetch(ModelName(repo, revision), ["model*.safetensors"])
    if not folder.is_dir():
        raise YoyoError(f"{folder}: expected a model folder; got a file.")
    config_path = folder / "config.json"
    if not config_path.exists():
        raise YoyoError(f"{folder}: no config.json. Is this a model folder?")
    check_folder(folder)
    config = read_config(config_path)
    if (folder / "generation_config.json").exists():  # mlx-lm reads it with the config
        read_json(folder / "generation_config.json")
    if "quantization" in config or "quantization_config" in config:
        raise YoyoError(
            f"{config_path}: the weights are quantized already. Start from the unquantized model."
        )
    try:
        load_config(folder)
    except Exception as error:  # numbers that it has tags of its own for
        raise YoyoError(f"{config_path}: mlx-lm cannot read it: {error}.") from None
    check_layers(config, _check_weights(folder), config_path)
    if not has_tokenizer(folder):
        raise YoyoError(
            f"{folder}: no tokenizer ({', '.join(VOCABULARY_FILES)}). Copy the tokenizer files of "
            "one of the merged models here; `mergekit-yaml` writes them with --copy-tokenizer."
        )
    return Source(folder, repo, config)


def _check_weights(folder: Path) -> int:
    """The number of tensors."""
    from mergekit_yoyo.model.checkpoint import Checkpoint

    if not any(folder.glob("model*.safetensors")):
        others = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pth", ".gguf", ".npz")]
        found = f"; got {', '.join(sorted(others)[:3])}" if others else ""
        raise YoyoError(f"{folder}: expected weights in model*.safetensors{found}.")
    with Checkpoint(folder) as checkpoint:  # whole, and of one model only
        return len(checkpoint.tensors)
