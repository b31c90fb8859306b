"""What a benchmark has measured so far, in a file, so that an interrupted run goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kept:
    """Measurements by label, as JSON has them; each is written down as soon as it is made.

    The file's name says what decides them: nothing is found again under other settings.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def get(self, label: str, make: Callable[[], Any]) -> Any:
        """A measurement, made if it is not there."""
        if label not in self.found:
            self.found[label] = make()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self.found))
        return self.found[label]
