"""The metadata at the top of a model card (YAML front matter): read, changed key by key, checked.

Checking is offline: a schema of the Hub's keys (`schema`), then a round trip through
`huggingface_hub.ModelCard`, which is what `hf` and the Hub's clients read. Only `validate_online`
talks to the Hub.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from pydantic import ValidationError

from mergekit_yoyo.card.schema import FrontMatter
from mergekit_yoyo.errors import YoyoError, explain_invalid
from mergekit_yoyo.outside import load_yaml, read_text


def read_card(file: Path) -> str:
    """The card in `file`, its line ends kept; an empty text if there is no such file.

    Raises:
        YoyoError: the file cannot be read, or is no text in UTF-8.
    """
    return read_text(file) if file.exists() else ""


def read_metadata(card: str) -> dict[str, Any]:
    """The front matter of `card` as a dictionary; empty if it has none.

    Raises:
        YoyoError: the block is not YAML, or not a mapping of keys to values.
    """
    block = REGEX_YAML_BLOCK.search(card)
    if block is None:
        return {}
    data = load_yaml(block.group(2), "model card, front matter")
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise YoyoError("model card: expected `key: value` lines between the --- lines at its top.")
    return data


def update_metadata(card: str, changes: Mapping[str, Any]) -> str:
    """`card` with the front-matter keys of `changes` set, or removed where the value is None.

    Only the lines of keys whose value differs are rewritten, so other keys keep their order,
    comments and spelling, and a second call changes nothing. A card without front matter gets one.

    Raises:
        YoyoError: as `read_metadata`.
    """
    present = read_metadata(card)
    changes = {key: value for key, value in changes.items() if present.get(key) != value}
    if not changes:
        return card
    newline = "\r\n" if "\r\n" in card else "\n"
    block = REGEX_YAML_BLOCK.search(card)
    lines, rest = (block.group(2), card[block.end() :]) if block else ("", card)
    for key, value in changes.items():
        lines = _set_key(lines, key, value)
    lines = newline.join(lines.strip().splitlines())
    return f"---{newline}{lines}{newline}---{newline}{rest}"


def check_card(card: str) -> list[str]:
    """Check every front-matter key of `card` offline, then that `huggingface_hub` reads the same.

    Returns:
        Notes on licenses, tasks and languages that the Hub may not know.

    Raises:
        YoyoError: names each key that the Hub would refuse, with what it expects.
    """
    metadata = read_metadata(card)
    try:
        checked = FrontMatter.model_validate(metadata)
    except ValidationError as error:
        raise YoyoError(f"model card, front matter: {explain_invalid(error, metadata)}") from None
    if not metadata:  # nothing that could be lost
        return []
    try:
        read = ModelCard(card)
        data: dict[str, Any] = read.data.to_dict()  # type: ignore[no-untyped-call]
        again = ModelCard(str(read)).data.to_dict()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError) as error:
        raise YoyoError(f"model card: huggingface_hub cannot read it: {error}") from None
    lost = [key for key, value in metadata.items() if value is not None and key not in again]
    if lost or again != data:
        raise YoyoError(f"model card: huggingface_hub would lose {', '.join(lost) or 'a value'}.")
    return checked.unknown_words()


def validate_online(card: str) -> None:
    """Ask the Hub itself to validate `card` (the only function here that needs the network).

    Raises:
        YoyoError: the Hub refuses the card, or cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        ModelCard(card).validate()
    except ValueError as error:
        raise YoyoError(f"model card: the Hub refuses it: {error}") from None
    except (HfHubHTTPError, OSError) as error:
        raise YoyoError(f"--online: the Hub could not be asked ({error}).") from None


def _set_key(lines: str, key: str, value: Any) -> str:
    """The YAML mapping `lines` with one top-level key replaced in place, appended, or removed."""
    dumped = "" if value is None else _dump({key: value})
    root = yaml.compose(lines, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):  # empty, or comments only
        return lines + "\n" + dumped
    if root.flow_style:  # {a: b}: no lines of its own for a key
        data = {**yaml.safe_load(lines), key: value}
        return _dump({k: v for k, v in data.items() if v is not None})
    for name, node in root.value:
        if name.value == key:
            end = lines.find("\n", node.end_mark.index)
            at_line_start = lines[: node.end_mark.index].endswith("\n")
            after = lines[node.end_mark.index :] if at_line_start else lines[end + 1 :]
            return lines[: name.start_mark.index] + dumped + ("" if end < 0 else after)
    return lines.rstrip() + "\n" + dumped


def _dump(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000)
