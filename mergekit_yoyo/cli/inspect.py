"""`mergekit-yoyo inspect`: look at a merge before it is run."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

if TYPE_CHECKING:
    from mergekit_yoyo.inspection import Inspection

PIPED_WIDTH = 100  # a pipe has none
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@click.command(name="inspect")
@click.argument("merge_yaml", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Stop before the weights; download only small files.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where the merge will be written: whose disk is asked for space.  [default: here]",
)
def command(merge_yaml: Path, quick: bool, output: Path) -> None:
    """Look at the merge of MERGE_YAML before it is run, and write nothing.

    Exits with 1 if mergekit-yaml would fail or its result would not be what the file says; with 0
    if not, whatever the warnings; with 2 if the file cannot be read.
    """
    from mergekit_yoyo.inspection import inspect

    out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    seen = inspect(merge_yaml, quick=quick, output=output)
    show(seen, merge_yaml, out)
    raise SystemExit(1 if seen.failed else 0)


def show(seen: "Inspection", file: Path, out: Console) -> None:
    """Print an inspection: the models, what is wrong with them, the distances, the verdict."""
    for level in ("note", "warning", "error"):
        for text in seen.of_level(level):
            out.print(f"{level}: ", style=_STYLES[level], end="")
            out.print(text)
