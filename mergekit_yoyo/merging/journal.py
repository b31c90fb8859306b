"""What a merge is and which of its parts are done: a file that survives the process.

JSON lines: the identity of the merge and its layout, then a line a part, then how far the road is.
Each line is on the disk before anything relies on it; a last line that a crash cut off is dropped.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.record.recorder import Collected

Stage = Literal["replacing", "merged", "finishing", "finished", "placing"]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Identity(_Line):
    """What decides the bytes of a merge.

    yaml: its text. options: mergekit's, those that matter. versions: of the packages that compute.
    inputs: by folder and file, size and time of change in nanoseconds.
    """

    yaml: str
    options: dict[str, Any]
    versions: dict[str, str]
    inputs: dict[str, dict[str, tuple[int, int]]]


class Layout(_Line):
    """The first line. parts: names of the tensors, by file."""

    line: Literal["layout"] = "layout"
    identity: Identity
    parts: dict[str, list[str]]


class DonePart(_Line):
    """A part that is on the disk. tensors: bytes by name. checksum: CRC-32 of each, by name.
    records: the lines of each record of the merge."""

    line: Literal["part"] = "part"
    file: str
    tensors: dict[str, int]
    checksum: dict[str, int]
    records: Collected = {}


class Reached(_Line):
    """A stage of the road that is done; `finishing` and `placing`: that begins.

    inode: with `replacing`, of the merge that will be replaced; with `placing`, of the new one.
    """

    line: Literal["stage"] = "stage"
    stage: Stage
    inode: int | None = None


class Journal:
    """The journal in `file`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.layout: Layout | None = None
        self.done: dict[str, DonePart] = {}
        self.stages: list[Stage] = []
        self.replaced: int | None = None
        self.placed: int | None = None

    @classmethod
    def read(cls, file: Path) -> "Journal":
        """The journal as a crash may have left it; empty if there is none.

        Raises:
            YoyoError: it cannot be read, or was written by another version.
        """
        journal = cls(file)
        try:
            lines = file.read_bytes().split(b"\n") if file.is_file() else []
        except OSError as error:
            raise YoyoError(f"{file}: cannot be read ({error.strerror}).") from None
        kinds: dict[str, type[_Line]] = {"layout": Layout, "part": DonePart, "stage": Reached}
        whole = lines[:-1]  # what follows the last line break is cut off, or nothing
        try:
            for text in whole:
                journal._take(kinds[json.loads(text)["line"]].model_validate_json(text))
        except (ValidationError, ValueError, KeyError, TypeError):
            raise YoyoError(
                f"{file}: not a journal of this version. Start the merge anew with --fresh."
            ) from None
        if len(lines) > 1 and lines[-1]:
            with file.open("r+b") as torn:
                torn.truncate(len(b"\n".join(whole)) + 1)
        return journal

    def reopen(self) -> None:
        """Forget how far the road was: what is merged is to be looked at again."""
        assert self.layout is not None
        self.begin(*self.replacing, self.layout, *self.done.values())

    @property
    def replacing(self) -> list[Reached]:
        """The line that says which earlier merge is to be replaced, as `--fresh` asked, if any."""
        inode = self.replaced
        return [] if inode is None else [Reached(stage="replacing", inode=inode)]

    def begin(self, *lines: "Layout | DonePart | Reached") -> None:
        """Start anew, in one step: nothing is known but `lines`."""
        beside = self.file.with_suffix(".new")
        with beside.open("wb") as out:
            out.writelines(_as_bytes(line) for line in lines)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(self.file)
        self.layout, self.done, self.stages = None, {}, []
        self.replaced = self.placed = None
        for line in lines:
            self._take(line)

    def append(self, line: Layout | DonePart | Reached) -> None:
        """Add a line, on the disk when this returns."""
        with self.file.open("ab") as out:
            out.write(_as_bytes(line))
            out.flush()
            os.fsync(out.fileno())
        self._take(line)

    def _take(self, line: object) -> None:
        if isinstance(line, Layout):
            self.layout = line
        elif isinstance(line, DonePart):
            self.done[line.file] = line
        elif isinstance(line, Reached):
            self.stages.append(line.stage)
            if line.stage == "replacing":
                self.replaced = line.inode
            elif line.stage == "placing":
                self.placed = line.inode


def _as_bytes(line: _Line) -> bytes:
    return line.model_dump_json().encode() + b"\n"


def changes(then: Identity, now: Identity) -> list[str]:
    """What of a merge is not as it was, in words; empty if nothing is."""
    found = []
    if then.yaml != now.yaml:
        found.append(f"the YAML ({_first_difference(then.yaml, now.yaml)})")
    found += _changed("option", then.options, now.options)
    found += _changed("version of", then.versions, now.versions)
    for model in {**then.inputs, **now.inputs}:
        files = (then.inputs.get(model, {}), now.inputs.get(model, {}))
        differing = [f for f in {**files[0], **files[1]} if files[0].get(f) != files[1].get(f)]
        if differing:
            found.append(f"{model}: {', '.join(differing[:3])}")
    return found


def _changed(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{what} {key}: {then.get(key)} then, {now.get(key)} now"
        for key in {**then, **now}
        if then.get(key) != now.get(key)
    ]


def _first_difference(then: str, now: str) -> str:
    lines: Sequence[tuple[str, str]] = list(zip(then.splitlines(), now.splitlines(), strict=False))
    for old, new in lines:
        if old != new:
            return f"`{old.strip()}` then, `{new.strip()}` now"
    return "other lines at its end"
