"""What others have written: the one reader of their JSON, their YAML and their folders.

A model, a merge's YAML or a result comes from anywhere, and may be torn or made to harm: a pipe or
a device in place of a file, more than fits in memory, nesting without end, aliases that multiply.
Here each of them is a sentence with the file it came from.
"""

import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mergekit_yoyo.errors import YoyoError

# Real ones are far below: the largest indexes have 10 MB, configs nest 5 deep, cards have 1,000
# nodes. Each bound keeps a hostile file below 1 GB of memory and 10 seconds.
JSON_BYTES = 32 * 2**20
FILE_BYTES = 128 * 2**20  # of a file that a library reads at once: tokenizers have 35 MB
YAML_BYTES = 2**20
DEPTH = 64
YAML_NODES = 20_000
JSON_VALUES = 4_000_000

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# What libraries open by these endings, without a look at what it is.
_WEIGHTS = (".safetensors", ".bin")
_FILES = (".json", ".model", ".jinja", ".yml", ".yaml", ".md", ".txt", *_WEIGHTS)


def check_regular(file: Path) -> None:
    """Refuse what is there but is no file: reading a pipe or a device may never end.

    Raises:
        YoyoError: it is a folder, a pipe, a socket or a device.
    """
    try:
        kind = stat.S_IFMT(file.stat().st_mode)
    except (OSError, ValueError):  # not there: whoever opens it says so
        return
    if kind in _KINDS:
        raise YoyoError(f"{file}: expected a file; got {_KINDS[kind]}.")


def check_folder(folder: Path) -> None:
    """Refuse a model folder that libraries should not be let into.

    Raises:
        YoyoError: it holds a pipe, a socket or a device, a folder with the name of a file, or a
            file that is no weights and too large to be read at once.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        file = folder / name
        if name.endswith(_FILES) or not file.is_dir():
            check_regular(file)
            if name.endswith(_FILES) and not name.endswith(_WEIGHTS) and file.exists():
                check_size(file, FILE_BYTES)


def check_size(file: Path, limit: int) -> None:
    """Refuse a file that is larger than `limit` bytes.

    Raises:
        YoyoError: it is.
    """
    if file.stat().st_size > limit:
        raise YoyoError(f"{file}: expected at most {limit:,} bytes; got {file.stat().st_size:,}.")


def read_text(file: Path, limit: int = JSON_BYTES) -> str:
    """A text in UTF-8 of at most `limit` bytes.

    Raises:
        YoyoError: it is not there, no regular file, larger, or no text in UTF-8.
    """
    check_regular(file)
    try:
        check_size(file, limit)
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise YoyoError(f"{file}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise YoyoError(f"{file}: expected a text in UTF-8: {error}.") from None


def load_json(text: str | bytes, source: object) -> Any:
    """What a JSON text says.

    Args:
        text: UTF-8.
        source: where it comes from, for the message.

    Raises:
        YoyoError: it is no JSON, nested without end, of too many values, or has half a character.
    """
    try:
        if isinstance(text, bytes):  # as json.loads does
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        if sum(map(text.count, ",[{")) > JSON_VALUES:
            raise YoyoError(f"{source}: more than {JSON_VALUES:,} values.")
        value = json.loads(text)
    except YoyoError:
        raise
    except RecursionError:
        raise YoyoError(f"{source}: nested more than {DEPTH} deep.") from None
    except ValueError as error:  # bad UTF-8 is one as well
        raise YoyoError(f"{source}: cannot be read: not JSON ({error}).") from None
    _check_depth(value, source)
    _check_characters(text, value, source)
    return value


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file of a model folder holds.

    Raises:
        YoyoError: it cannot be read, or does not hold a mapping.
    """
    values = load_json(read_text(file), file)
    if not isinstance(values, dict):
        raise YoyoError(f"{file}: expected a JSON object; got {type(values).__name__}.")
    return values


def load_yaml(text: str, source: object) -> Any:
    """What a YAML text says, by YAML's safe types.

    Args:
        text: of one document.
        source: where it comes from, for the message.

    Raises:
        YoyoError: it is no YAML, too long, nested without end, or its aliases multiply.
    """
    if len(text) > YAML_BYTES:
        raise YoyoError(f"{source}: expected at most {YAML_BYTES:,} characters of YAML; got more.")
    try:
        _check_nodes(yaml.parse(text, Loader=yaml.SafeLoader), source)
        value = yaml.safe_load(text)
        _check_characters(text, value, source)
        return value
    except YoyoError:
        raise
    except Exception as error:  # a tag such as !!timestamp fails in ways of its own
        raise YoyoError(f"{source}: not valid YAML: {error}") from None


def _check_characters(text: str, value: Any, source: object) -> None:
    """Refuse halves of characters (surrogates), which can be escaped but neither shown nor kept."""
    if re.search(r"\\[uU]0*[dD][89a-fA-F]", text) is None:
        return
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise YoyoError(f"{source}: half a character (\\ud800 or its kin) stands alone.") from None


def _check_depth(value: Any, source: object) -> None:
    level = [value]
    for _ in range(DEPTH):
        level = [
            inner
            for part in level
            if isinstance(part, dict | list)
            for inner in (part.values() if isinstance(part, dict) else part)
        ]
        if not level:
            return
    raise YoyoError(f"{source}: nested more than {DEPTH} deep.")


def _check_nodes(events: Iterable[Any], source: object) -> None:
    """Count the nodes of a document with every alias written out, and the depth."""
    sizes: dict[str, int] = {}  # of anchored nodes, once they are whole
    begun: list[tuple[str | None, int]] = []  # anchor of each open collection, and nodes before it
    nodes = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in begun):
                raise YoyoError(f"{source}: *{event.anchor} stands within what it names.")
            nodes += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            if anchor is not None:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
        if nodes > YAML_NODES:
            raise YoyoError(
                f"{source}: more than {YAML_NODES:,} values, with its aliases written out."
            )
        if len(begun) > DEPTH:
            raise YoyoError(f"{source}: nested more than {DEPTH} deep.")
