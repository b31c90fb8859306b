"""Reads a merge's record back: complete, unfinished, or cut off in its last line by a crash."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from mergekit_yoyo.errors import YoyoError, explain_invalid
from mergekit_yoyo.outside import check_regular, check_size, load_json
from mergekit_yoyo.record.schema import (
    BOUNDS,
    COLUMNS,
    SCHEMA_VERSION,
    Header,
    Scalar,
    TensorLine,
)

_BYTES = 2**30  # a record of 30,000 tensors has 40 MB
_MOST = 2**63  # of anything counted
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
    check_regular(path)
    try:
        check_size(path, _BYTES)
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
        if b"NaN" in text and (found := _parsed(text)) is not None and _has_nan(found):
            raise YoyoError(f"{path}, line {number}: NaN is no number of a record; null is.")
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
        if wrong := _foreign(tensor, header) or _misfit(tensor):
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
    if type(version) is not int or version != SCHEMA_VERSION:  # true and 1.0 are equal to 1
        versions = data.get("versions")
        named = isinstance(versions, dict) and versions.get("mergekit-yoyo")
        writer = named or "another version"
        raise YoyoError(
            f"{path}: schema version {version}, written by mergekit-yoyo {writer}; this one reads "
            f"version {SCHEMA_VERSION}. Use that mergekit-yoyo, or run the merge again with this."
        )
    try:
        header = Header.model_validate(data)
    except ValidationError as error:
        raise _no_line(path, 1, text, error, Header) from error
    if wrong := _impossible_header(header):
        raise YoyoError(f"{path}, line 1: {wrong}.")
    return header


def _impossible_header(header: Header) -> str:
    """What no merge has, or nothing."""
    if wrong := _wrong_names(header.inputs):
        return wrong
    if header.tensors is not None and not 0 <= header.tensors < _MOST:
        return f"tensors: expected a count; got {header.tensors}"
    if wrong := _impossible_option(header.parameters):
        return wrong
    try:
        datetime.fromisoformat(header.started)
    except ValueError:
        return f"started: expected a date (ISO 8601); got {header.started!r}"
    return ""


def _wrong_names(inputs: list[str]) -> str:
    if not inputs or len(set(inputs)) < len(inputs):
        return f"inputs: expected the names of models, each once; got {inputs}"
    return ""


def _impossible_option(parameters: Mapping[str, Scalar]) -> str:
    for name, value in parameters.items():
        if isinstance(value, int | float) and not abs(value) < _MOST:
            said = f"{value:.3g}" if isinstance(value, float) else "so large an integer"
            return f"parameters.{name}: no option can be {said}"
    return ""


def _parsed(text: bytes) -> Any:
    """What a line of JSON says, None if it is none."""
    try:
        return load_json(text, "")
    except YoyoError:
        return None


def _has_nan(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_nan, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and math.isnan(value)


def _no_line(
    path: Path, number: int, text: bytes, error: ValidationError, kind: type[BaseModel]
) -> YoyoError:
    wrong = explain_invalid(error, _parsed(text), kind.model_fields)
    said = shorten(wrong, _SAID, placeholder=" ...")
    return YoyoError(f"{path}, line {number}: not a line of a record ({said}).")


def _foreign(tensor: TensorLine, header: Header) -> str:
    """Inputs or options of a line that the merge cannot have, or nothing."""
    names = tensor.inputs or []
    if wrong := _wrong_names(names):
        return wrong
    if header.tensors is not None and (more := set(names) - set(header.inputs)):
        return f"inputs: {min(more)} is none of the merge"
    return _impossible_option(tensor.parameters)


def _misfit(tensor: TensorLine) -> str:
    """What does not fit together in a line, or nothing."""
    inputs, problems = len(tensor.inputs or ()), len(tensor.weights)
    for column, per in COLUMNS.items():
        rows, width = getattr(tensor, column), per.width(inputs)
        if rows is None or (not rows and not problems):
            continue
        if len(rows) != problems or (width is not None and any(len(row) != width for row in rows)):
            return f"expected {problems}{f' x {width}' if width else ''} {column}"
    if any(not 0 <= size < _MOST for size in tensor.shape) or math.prod(tensor.shape) >= _MOST:
        return f"no tensor has the shape {tensor.shape}"
    for finding in tensor.warnings:
        if not 0 < finding.problems <= max(problems, 1):
            return f"a warning of {finding.problems} problems, of {problems}"
        if finding.model is not None and finding.model not in (tensor.inputs or ()):
            return f"a warning of {finding.model}, which is no input of it"
    if not problems:
        return ""
    if math.prod(tensor.shape) % problems:
        return f"{problems} problems do not divide the shape {tensor.shape}"
    return _impossible(tensor)


def _impossible(tensor: TensorLine) -> str:
    """A number that no merge leaves in its column, or nothing. Null is none, NaN is impossible."""
    for column, (lowest, highest) in BOUNDS.items():
        rows = getattr(tensor, column)
        if not rows:
            continue
        values = np.asarray(rows, dtype=float)
        wrong = values[~(np.isnan(values) | ((values >= lowest) & (values <= highest)))]
        if wrong.size:
            return f"{column}: {wrong[0]:.4g} is impossible"
    if math.prod(tensor.shape) == 0 and any(norm for row in tensor.norms for norm in row):
        return f"a tensor of shape {tensor.shape} has no norm"
    return ""
