"""Reads a merge's record back: complete, unfinished, or cut off in its last line by a crash."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from textwrap import shorten
from typing import Any

from pydantic import BaseModel, ValidationError

from mergekit_yoyo.errors import YoyoError, explain_invalid
from mergekit_yoyo.record.schema import COLUMNS, SCHEMA_VERSION, Header, TensorLine

_SAID = 300  # letters of what is wrong with a line: it may be wrong in every number


@dataclass(frozen=True)
class Record:
    """A record as it lies in its file.

    tensors: in the order of the file, each with its inputs filled in. truncated: the last line was
    cut off, and left out.
    """

    path: Path
    header: Header
    tensors: list[TensorLine]
    truncated: bool

    @property
    def missing(self) -> int:
        """How many of the planned tensors have no line: more than none for an unfinished merge."""
        return max(0, (self.header.tensors or 0) - len(self.tensors))


def read_record(path: Path) -> Record:
    """Read the record of a merge.

    A last line that a crash cut off is left out. Fewer tensors than planned are no error either:
    see `Record.missing`.

    Raises:
        YoyoError: there is no such file, it is no record or one of another schema version, or a
            line is not as the schema has it.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise YoyoError(
            f"{path}: cannot be read ({error.strerror}). Expected the record of a merge; "
            "`parameters: {report: FILE}` in a merge's YAML makes one."
        ) from error
    header = _header(path, lines[0])
    tensors: list[TensorLine] = []
    names: set[str] = set()
    # a file that was closed between two lines ends with an empty piece
    for number, text in enumerate(lines[1:], start=2):
        last = number == len(lines)
        if last and not text:
            break
        try:
            tensor = TensorLine.model_validate_json(text)
        except ValidationError as error:
            if last and _parsed(text) is None:
                return Record(path, header, tensors, truncated=True)
            raise _no_line(path, number, text, error, TensorLine) from error
        if tensor.inputs is None:
            tensor = tensor.model_copy(update={"inputs": header.inputs})
        if tensor.name in names:
            raise YoyoError(f"{path}, line {number}: {tensor.name} is there twice.")
        if wrong := _misfit(tensor):
            raise YoyoError(f"{path}, line {number}: {tensor.name}: {wrong}.")
        names.add(tensor.name)
        tensors.append(tensor)
    return Record(path, header, tensors, truncated=False)


def _header(path: Path, text: bytes) -> Header:
    data = _parsed(text)
    if not isinstance(data, dict) or data.get("line") != "header":
        raise YoyoError(
            f"{path}: not the record of a merge: its first line is no header. "
            "`parameters: {report: FILE}` in a merge's YAML makes a record."
        )
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        writer = dict(data.get("versions") or {}).get("mergekit-yoyo", "another version")
        raise YoyoError(
            f"{path}: schema version {version}, written by mergekit-yoyo {writer}; this one reads "
            f"version {SCHEMA_VERSION}. Use that mergekit-yoyo, or run the merge again with this."
        )
    try:
        return Header.model_validate(data)
    except ValidationError as error:
        raise _no_line(path, 1, text, error, Header) from error


def _parsed(text: bytes) -> Any:
    """What a line of JSON says, None if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _no_line(
    path: Path, number: int, text: bytes, error: ValidationError, kind: type[BaseModel]
) -> YoyoError:
    wrong = explain_invalid(error, _parsed(text), kind.model_fields)
    said = shorten(wrong, _SAID, placeholder=" ...")
    return YoyoError(f"{path}, line {number}: not a line of a record ({said}).")


def _misfit(tensor: TensorLine) -> str:
    """What does not fit together in a line, or nothing."""
    inputs, problems = len(tensor.inputs or ()), len(tensor.weights)
    for column, per in COLUMNS.items():
        rows, width = getattr(tensor, column), per.width(inputs)
        if rows is None or (not rows and not problems):
            continue
        if len(rows) != problems or (width and any(len(row) != width for row in rows)):
            return f"expected {problems}{f' x {width}' if width else ''} {column}"
    if not problems:
        return ""
    if prod(tensor.shape) % problems:
        return f"{problems} problems do not divide the shape {tensor.shape}"
    return ""
