"""The candidates that were measured, a line each: an interrupted search goes on from them."""

import json
import os
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.outside import load_json, read_text
from mergekit_yoyo.tuning.divergence import Sample

JOURNAL_BYTES = 2**30

Found = dict[str, list[Sample]]


class Journal:
    """The journal in `file`, of the search that `identity` describes.

    Raises:
        YoyoError: it is of another search.
    """

    def __init__(self, file: Path, identity: dict[str, Any]) -> None:
        self._file = file
        self._known: dict[str, Found] = {}
        lines = read_text(file, JOURNAL_BYTES).split("\n") if file.is_file() else []
        if len(lines) < 2:
            file.write_text(json.dumps(identity) + "\n", encoding="utf-8")
            return
        then = load_json(lines[0], file)
        if then != json.loads(json.dumps(identity)):
            changed = [key for key in identity if then.get(key) != identity[key]]
            raise YoyoError(
                f"{file.parent}: holds the beginning of another search; changed: "
                f"{', '.join(changed)}. Undo that to go on, or start anew with --fresh."
            )
        for line in lines[1:-1]:  # what follows the last line break was cut off, or is nothing
            entry = load_json(line, file)
            self._known[entry["key"]] = {
                name: [Sample(kl, loss) for kl, loss in samples]
                for name, samples in entry["samples"].items()
            }
        if lines[-1]:
            file.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Found | None:
        """What was measured under a key."""
        return self._known.get(key)

    def add(self, key: str, found: Found) -> None:
        """Remember a candidate, on the disk when this returns."""
        samples = {name: [(s.kl, s.loss) for s in some] for name, some in found.items()}
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"key": key, "samples": samples}) + "\n")
            out.flush()
            os.fsync(out.fileno())
        self._known[key] = found
