"""JSON files of a model folder: the one reader of what others have written."""

import json
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file of a model folder holds.

    Raises:
        YoyoError: it cannot be read, or does not hold a mapping.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise YoyoError(f"{file}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise YoyoError(f"{file}: expected a JSON object; got {type(values).__name__}.")
    return values


def read_index(file: Path) -> dict[str, str]:
    """The `weight_map` of an index: the file of each tensor.

    Raises:
        YoyoError: it cannot be read, or holds no such map.
    """
    files = read_json(file).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise YoyoError(f"{file}: expected a `weight_map` of tensor names to files; got none.")
    return files
