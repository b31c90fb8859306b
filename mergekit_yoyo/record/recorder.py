"""Writes records as merges go: one file per path, a line as soon as a tensor is done.

A merge method has neither a beginning nor an end in mergekit: the file is opened at the first
tensor, each line is flushed, and the end is the end of the process. Tensors may come from several
threads at once. Where several processes merge, each collects its lines, and one of them assembles
the record.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TextIO

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.record.schema import Header, Scalar, TensorLine
from mergekit_yoyo.staging import write_files

_BEGINNING = '{"line":"header"'  # of every record
_PACKAGES = ("mergekit-yoyo", "mergekit", "torch", "transformers")


@dataclass
class _Record:
    """One record of this process: planned, and once there is a file, being written."""

    path: Path
    base: str | None = None
    yaml: str | None = None
    inputs: dict[str, None] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    file: TextIO | None = None
    header: Header | None = None


Collected = dict[str, list[TensorLine]]  # lines by the path of their record

_records: dict[Path, _Record] = {}
_collected: Collected | None = None
_lock = Lock()


def plan(
    report: str,
    tensor: str,
    inputs: Sequence[str],
    base: str | None,
    *,
    optional: bool,
    yaml: str | None = None,
) -> None:
    """Take note of a tensor that will be merged, so that the header can tell of all.

    report: the path, as the user wrote it. optional: models may lack the tensor. yaml: of the
    merge.

    Raises YoyoError if the tensor is in that record already (a second merge in one process), or if
    no file can be written there.
    """
    with _lock:
        record = _record(report)
        _check_new(record, tensor)
        if not record.inputs:
            _check_writable(record.path)
        record.base, record.yaml = base, yaml
        record.inputs |= dict.fromkeys(inputs)
        if not optional:
            record.required.add(tensor)


def write(report: str, line: TensorLine) -> None:
    """Append a tensor's line; the first one opens the file and writes the header. Within
    `collecting` it is kept instead.

    line: with all its inputs and parameters; those that repeat the header are left out.

    Raises YoyoError for a tensor that is in the record already, or if it cannot be written.
    """
    with _lock:
        if _collected is not None:
            _collected.setdefault(report, []).append(line)
            return
        record = _record(report)
        _check_new(record, line.name)
        try:
            if record.file is None or record.header is None:
                record.header = _header(record, line)
                record.path.parent.mkdir(parents=True, exist_ok=True)
                record.file = record.path.open("w", encoding="utf-8")
                record.file.write(record.header.model_dump_json() + "\n")
            record.file.write(_shortened(line, record.header) + "\n")
            record.file.flush()
        except OSError as error:
            raise _unwritable(record, error) from error
        record.written.add(line.name)


@contextmanager
def collecting() -> Iterator[Collected]:
    """Keep the lines that are written meanwhile, for `assemble`: this process merges one part of
    several."""
    global _collected
    with _lock:
        lines: Collected = {}
        _collected = lines
    try:
        yield lines
    finally:
        with _lock:
            _collected = None


def assemble(report: str, lines: Sequence[TensorLine]) -> None:
    """Write a record whole: of `lines` that were collected, in their order, and what was planned.

    Raises YoyoError if it cannot be written; what was there is left as it was.
    """
    with _lock:
        record = _record(report)
        record.header = record.header or _header(record, lines[0])
        text = [record.header.model_dump_json(), *(_shortened(x, record.header) for x in lines)]
        try:
            record.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(record, error) from error
        write_files({record.path: "".join(f"{line}\n" for line in text).encode()})


def forget(report: str) -> None:
    """Take no more note of a record: the next merge that writes it is another one."""
    with _lock:
        _records.pop(_record(report).path)


def _record(report: str) -> _Record:
    path = Path(report).expanduser().resolve()
    return _records.setdefault(path, _Record(path))


def _check_new(record: _Record, tensor: str) -> None:
    if tensor in record.written:
        raise YoyoError(
            f"report: {record.path} already holds {tensor}, from a merge of this process. "
            "Give each merge a path of its own."
        )


def _unwritable(record: _Record, error: OSError) -> YoyoError:
    return YoyoError(
        f"report: {record.path} cannot be written ({error.strerror}). "
        "Choose another path, or leave report out."
    )


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise YoyoError(f"report: {path} is a folder; expected a file, such as report.jsonl.")
    if path.exists() and not (path.is_file() and _is_record(path)):
        raise YoyoError(
            f"report: {path} is there already and is no record of a merge: it would be "
            "overwritten. Choose another path."
        )
    existing = next(folder for folder in path.parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise YoyoError(f"report: nothing can be written to {existing}. Choose another path.")


def _is_record(path: Path) -> bool:
    """Whether a file is a record as far as its first bytes tell, or empty."""
    beginning = _BEGINNING.encode()
    try:
        with path.open("rb") as file:
            return file.read(len(beginning)) in (b"", beginning)
    except OSError:  # it is told when it is written
        return True


def _header(record: _Record, line: TensorLine) -> Header:
    return Header(
        versions={package: version(package).split("+")[0] for package in _PACKAGES},
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        inputs=list(record.inputs or line.inputs or ()),
        base=record.base,
        tensors=len(record.required) or None,
        yaml=record.yaml,
        parameters=line.parameters,
    )


def _shortened(line: TensorLine, header: Header) -> str:
    """The line as JSON, without what the header says already."""
    own: Mapping[str, Scalar] = {
        name: value
        for name, value in line.parameters.items()
        if name not in header.parameters or header.parameters[name] != value
    }
    inputs = None if line.inputs == header.inputs else line.inputs
    shortened = line.model_copy(update={"parameters": own, "inputs": inputs})
    return shortened.model_dump_json(exclude_none=True)
