"""How long work tells how far it is: the one protocol, which knows no terminal."""

from typing import Protocol


class Progress(Protocol):
    """Told by work that takes long, in steps of so many units.

    unit: what is counted, in the plural: `bytes`, `tensors`, `tasks`.
    """

    def begin(self, step: str, total: int | None = None, unit: str = "tensors") -> None:
        """A step begins; total: how many units it has, None if that is not known."""

    def advance(self, count: int = 1) -> None:
        """So many units more of the step are done."""

    def say(self, text: str) -> None:
        """A line for the user that stays."""


class Silent:
    """Tells nobody."""

    def begin(self, step: str, total: int | None = None, unit: str = "tensors") -> None:
        """Ignored."""

    def advance(self, count: int = 1) -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """Ignored."""


SILENT = Silent()
