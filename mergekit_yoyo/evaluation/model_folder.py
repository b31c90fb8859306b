"""What to know of a model folder before it is loaded: its loader, its quantization, a hash."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.json_files import read_config
from mergekit_yoyo.outside import check_folder, read_json

_SAMPLED_BYTES = 1 << 20
# What is fetched of a model on the Hub, weights aside: not its GGUF, ONNX or original files.
_SMALL_FILES = ("*.json", "*.model", "*.tiktoken", "*.txt", "*.jinja")
_TOKENIZERS = ("tokenizer.json", "tekken.json", "vocab*", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk. `given` is what the user wrote; `backend` the harness's name of its loader.

    `quantization` has a `label` for people (`4-bit g64`, `mxfp4`, `bfloat16`) and the `settings`
    that the folder's config states, None if it is not quantized.
    """

    given: str
    path: Path
    backend: Literal["hf", "mlxlm"]
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
    path = folder.resolve() if folder.is_dir() else _download(given)
    check_folder(path)
    if not (path / "config.json").exists():
        raise YoyoError(f"{path}: not a model folder: it has no config.json.")
    config = read_config(path / "config.json")
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    if not weights:
        raise YoyoError(f"{given}: no weights (*.safetensors) in this folder.")
    if not any(True for pattern in _TOKENIZERS for _ in path.glob(pattern)):
        raise YoyoError(
            f"{given}: no tokenizer ({', '.join(_TOKENIZERS)}) in this folder. Copy the files of "
            "one of the merged models here; `mergekit-yaml` writes them with --copy-tokenizer."
        )
    header = _header(weights[0])
    is_mlx = header.get("format") == "mlx"
    tokenizer = path / "tokenizer_config.json"
    return ModelFolder(
        given=given,
        path=path,
        backend="mlxlm" if is_mlx else "hf",
        quantization=describe_quantization(config),
        has_chat_template=(path / "chat_template.jinja").exists()
        or (tokenizer.exists() and bool(read_json(tokenizer).get("chat_template"))),
        fingerprint=_fingerprint([path / "config.json", *weights]),
    )


def describe_quantization(config: dict[str, Any]) -> dict[str, Any]:
    """The quantization that a `config.json` states: a label for people, and the settings as given.

    MLX keeps a default (`bits`, `group_size`, `mode`) and, by module, what differs from it.
    """
    settings = config.get("quantization") or config.get("quantization_config")
    if not settings:
        return {"label": config.get("dtype") or config.get("torch_dtype"), "settings": None}
    if method := settings.get("quant_method"):
        bits = settings.get("bits") or next(
            (bits for bits in (4, 8) if settings.get(f"load_in_{bits}bit")), None
        )
        return {"label": f"{method} {bits}-bit" if bits else method, "settings": settings}
    parts = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    widths = {part["bits"] for part in parts if "bits" in part}
    mode = settings.get("mode", "affine")
    label = "/".join(map(str, sorted(widths))) + f"-bit g{settings.get('group_size')}"
    if mode != "affine":
        label = mode if len(widths) == 1 else f"{mode} and {max(widths)}-bit"
    return {"label": label, "settings": settings}


def _download(given: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(weights: str) -> Path:
        return Path(snapshot_download(given, allow_patterns=[*_SMALL_FILES, weights]))

    try:
        path = fetch("model*.safetensors")
        has_weights = any(path.glob("*.safetensors"))
        return path if has_weights else fetch("pytorch_model*.bin")
    except HFValidationError:
        raise YoyoError(f"{given}: no such folder, and not a name on the Hub.") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise YoyoError(
            f"{given}: no such folder here, and the Hub did not give it ({reason})."
        ) from None


def _header(weights: Path) -> dict[str, str]:
    if weights.suffix != ".safetensors":
        return {}
    try:
        with safe_open(weights, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise YoyoError(f"{weights}: not a readable safetensors file ({error}).") from error


def _fingerprint(files: list[Path]) -> str:
    """A hash that tells two exports apart: name, size, first and last MiB of each file.

    Reading 80 GB to resume a run would cost more than it saves.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLED_BYTES))
            content.seek(max(size - _SAMPLED_BYTES, 0))
            digest.update(content.read())
    return digest.hexdigest()
