"""The tables of the summary and the comparison in the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from mergekit_yoyo.record.statistics import TensorStatistics

SHOWN = 8  # tensors in a list
MOST_COLUMNS = 4  # models side by side with the names of tensors
_NAMES_WIDTH = 36  # of all names side by side; longer ones get numbers


def marks_of(names: Sequence[str]) -> list[str]:
    """The names, if they fit side by side, else numbers, which the table of the models explains."""
    if sum(len(name) + 3 for name in names) <= _NAMES_WIDTH:
        return list(names)
    return [f"[{number}]" for number in range(1, len(names) + 1)]


def label(mark: str, name: str) -> Text:
    """A model in the table that explains the marks."""
    return Text(name if mark == name else f"{mark} {name}")


def place_text(tensor: TensorStatistics) -> Text:
    """Layer and kind of a tensor."""
    layer, kind = tensor.place
    return Text(kind if layer is None else f"{layer} {kind}")


def table_of(first: str, *numbers: str) -> Table:
    """A table of one column of names and others of numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(Text(name), justify="right", overflow="fold")
    return table


def right(title: str) -> Column:
    """A column of numbers."""
    return Column(title, justify="right")


def legend(text: str) -> Text:
    """What a table shows, below it."""
    return Text(text + "\n", style="dim")
