"""Benchmark scores: read what the harness left, make the table, compare two models."""

from mergekit_yoyo.scores.card import CardFiles, prepare_card, write_card
from mergekit_yoyo.scores.compare import ScoreComparison, compare, flipped_items
from mergekit_yoyo.scores.plot import render_png
from mergekit_yoyo.scores.reading import read_results
from mergekit_yoyo.scores.render import (
    render_comparison,
    render_csv,
    render_markdown,
    render_terminal,
)
from mergekit_yoyo.scores.results import ModelResult
from mergekit_yoyo.scores.road import render_road
from mergekit_yoyo.scores.table import Table, build_table
from mergekit_yoyo.seven_tasks import SEVEN_TASKS

__all__ = [
    "SEVEN_TASKS",
    "CardFiles",
    "ModelResult",
    "ScoreComparison",
    "Table",
    "build_table",
    "compare",
    "flipped_items",
    "prepare_card",
    "read_results",
    "render_comparison",
    "render_csv",
    "render_markdown",
    "render_png",
    "render_road",
    "render_terminal",
    "write_card",
]
