"""Reading a Markdown table of scores: a column of model names, then one column a task.

Published tables state no metric and no setup. Those of `render_markdown` have the metric in the
header (`arc\\_easy<br>acc\\_norm`), standard errors, and columns for quantization, mean and what
else was measured (`perplexity<br>code`).
"""

import re
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.scores.quantities import Measure, MeasureColumn, column_of
from mergekit_yoyo.scores.results import UNSTATED, ModelResult, Score, TaskResult
from mergekit_yoyo.scores.statistics import is_share
from mergekit_yoyo.seven_tasks import BENCHMARKS

MARKDOWN_BYTES = 2**18  # of a page: cards with tables have a tenth of it
_LOWER = " (lower is better)"
_POSITIVE = r"(?:\d+(?:\.\d+)?|\.\d+)(?:e[-+]\d\d)?"
_NUMBER = re.compile(rf"(?P<value>-?{_POSITIVE})(\s*±\s*(?P<stderr>{_POSITIVE}))?\s*\*?")
_EMPTY = ("", "-", "—")


def read_markdown(path: Path, text: str) -> list[ModelResult]:
    """The rows of the first table in `text`, the content of `path`.

    Raises:
        YoyoError: no table, a row of another length, a cell that is no score.
    """
    header, *rows = _first_table(path, text)
    results = []
    for name, *cells in rows:
        tasks, measures, quantization = {}, {}, None
        for head, cell in zip(header[1:], cells, strict=True):
            task, _, metric = head.partition("\n")
            if task == "quantization":
                quantization = cell or None
            elif cell in _EMPTY or task == "mean":
                continue
            elif column := column_of(task, metric):
                measures[column] = _read_measure(f"{path}: {name}, {task}", column, cell)
            else:
                tasks[task] = _read_cell(f"{path}: {name}, {task}", task, metric, cell)
        results.append(ModelResult(name, path, tasks, quantization=quantization, measures=measures))
    return results


def _first_table(path: Path, text: str) -> list[list[str]]:
    """The cells of the first table, row by row, as they are read: no emphasis, no escapes."""
    rows: list[list[str]] = []
    lines = text.splitlines()
    for token, inner in pairwise(MarkdownIt("commonmark").enable("table").parse(text)):
        if token.type == "tr_open" and token.map:
            line = lines[token.map[0]].strip()
            count = len(re.findall(r"(?<!\\)\|", line.removeprefix("|").removesuffix("|"))) + 1
            if rows and count != len(rows[0]):  # Markdown would fill it up, or drop what is over
                raise YoyoError(
                    f"{path}: row {line!r}: expected {len(rows[0])} cells; got {count}."
                )
            rows.append([])
        elif token.type in {"th_open", "td_open"}:
            rows[-1].append(_plain(inner))
        if inner.type == "table_close":
            return rows
    raise YoyoError(f"{path}: no table; expected a header `| model | task | ... |` and rows.")


def _read_cell(place: str, task: str, metric: str, cell: str) -> TaskResult:
    lower = metric.endswith(_LOWER)
    metric = metric.removesuffix(_LOWER) or UNSTATED
    match = _NUMBER.fullmatch(cell)
    if not match or (is_share(metric) and not 0 <= float(match["value"]) <= 1):
        raise YoyoError(f"{place}: expected a fraction such as 0.533; got {cell!r}.")
    stderr = float(match["stderr"]) if match["stderr"] else None
    # A published number without an error is taken for one of the whole task.
    size = BENCHMARKS[task].items if task in BENCHMARKS and stderr is None else None
    return TaskResult(
        {metric: Score(float(match["value"]), stderr)},
        items=size,
        size=size,
        lower_is_better=frozenset({metric} if lower else ()),
    )


def _read_measure(place: str, column: MeasureColumn, cell: str) -> Measure:
    number = cell.removesuffix(column.kind.unit).strip() if column.kind.unit else cell
    if not (match := _NUMBER.fullmatch(number)):
        raise YoyoError(f"{place}: expected a number such as 4.455 ± 0.031; got {cell!r}.")
    return Measure(float(match["value"]), float(match["stderr"]) if match["stderr"] else None)


def _plain(cell: Token) -> str:
    """What a reader sees of a cell, a break as a new line."""
    parts = [
        child.content if child.type != "html_inline" else "\n" * child.content.startswith("<br")
        for child in cell.children or []
    ]
    return "".join(parts).strip()
