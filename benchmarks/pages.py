"""Measured tables in docs: printed always, written into their page only when `--write` asks for it.

A page holds a table between two markers, as cards of models do:

    <!-- mergekit-yoyo:NAME -->
    | ...
    <!-- /mergekit-yoyo:NAME -->
"""

from collections.abc import Iterable
from pathlib import Path

import click

from mergekit_yoyo.card.sections import write_section

DOCS = Path(__file__).resolve().parents[1] / "docs"

write_option = click.option("--write", is_flag=True, help="Write the table into its page of docs.")


def show(lines: str | Iterable[str], page: str, name: str, *, write: bool) -> None:
    """Print a table; with `write`, also put it between the markers NAME of docs/PAGE."""
    table = lines if isinstance(lines, str) else "\n".join(lines)
    click.echo(table)
    if write:
        path = DOCS / page
        path.write_text(write_section(path.read_text(), name, table))
        click.echo(f"written to {path}", err=True)
