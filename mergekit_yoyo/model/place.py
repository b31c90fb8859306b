"""From a model's name to its folder: a local one, its snapshot in the Hub cache, or a download."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.model.merge_yaml import ModelName
from mergekit_yoyo.outside import check_folder

# What is fetched of a model on the Hub besides weights: not its GGUF, ONNX or original files.
SMALL_FILES = (
    *("*.json", "*.jsonl", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "*.md", "*.yml"),
    *("LICENSE*", "NOTICE*"),
)


def locate(name: ModelName) -> Path:
    """The folder of a model: a local one, its snapshot in the Hub cache, or its small files there.

    Raises:
        YoyoError: it is neither a folder, nor cached, nor to be had from the Hub.
    """
    path = Path(name.path).expanduser()
    if path.is_dir():
        check_folder(path)
        return path
    if name.on_hub:
        try:
            cached = snapshot_download(name.path, revision=name.revision, local_files_only=True)
        except LocalEntryNotFoundError:
            return fetch(name)
        except HFValidationError:
            raise _no_name(name) from None
        if (Path(cached) / "config.json").is_file():
            check_folder(Path(cached))
            return Path(cached)
    return fetch(name)


def fetch(name: ModelName, weights: Sequence[str] = ()) -> Path:
    """The snapshot of a model of the Hub, its small files and weights downloaded if need be.

    Args:
        name: of the model.
        weights: patterns of weight files; the first that the model has.

    Raises:
        YoyoError: it is no name on the Hub, or the Hub did not give it.
    """
    if not name.on_hub:
        raise _no_name(name)
    try:
        for pattern in weights or ("",):
            patterns = [*SMALL_FILES, *filter(None, [pattern])]
            path = Path(
                snapshot_download(name.path, revision=name.revision, allow_patterns=patterns)
            )
            if pattern and any(True for _ in path.glob(pattern)):
                break
    except HFValidationError:
        raise _no_name(name) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise YoyoError(
            f"{name}: no such folder here, and the Hub did not give it ({reason})."
        ) from None
    return path


def _no_name(name: ModelName) -> YoyoError:
    return YoyoError(f"{name}: no such folder, and not a name on the Hub.")
