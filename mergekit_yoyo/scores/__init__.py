"""Benchmark scores: read what the harness left, make the table, compare two models."""

from mergekit_yoyo.scores.card import write_card
from mergekit_yoyo.scores.compare import Comparison, compare, flipped_items
from mergekit_yoyo.scores.plot import write_png
from mergekit_yoyo.scores.reading import read_results
from mergekit_yoyo.scores.render import (
    render_comparison,
    render_csv,
    render_markdown,
    render_terminal,
)
from mergekit_yoyo.scores.results import SEVEN_TASKS, ModelResult
from mergekit_yoyo.scores.table import Table, build_table

__all__ = [
    "SEVEN_TASKS",
    "Comparison",
    "ModelResult",
    "Table",
    "build_table",
    "compare",
    "flipped_items",
    "read_results",
    "render_comparison",
    "render_csv",
    "render_markdown",
    "render_terminal",
    "write_card",
    "write_png",
]
