"""Reading a Markdown table of scores: a column of model names, then one column a task.

Published tables state no metric and no setup. Those of `render_markdown` have the metric in the
header (`arc\\_easy<br>acc\\_norm`), standard errors, and columns for weights and mean.
"""

import re
from pathlib import Path

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.scores.results import UNSTATED, ModelResult, Score, TaskResult
from mergekit_yoyo.scores.statistics import is_share
from mergekit_yoyo.seven_tasks import BENCHMARKS

_LOWER = " (lower is better)"
_NUMBER = re.compile(r"[*_\s]*(?P<value>-?\d*\.?\d+)(\s*±\s*(?P<stderr>\d*\.?\d+))?[*_\s]*")


def read_markdown(path: Path, text: str) -> list[ModelResult]:
    """The rows of the first table in `text`, the content of `path`.

    Raises:
        YoyoError: no table, a row of another length, a cell that is no score.
    """
    lines = [line.strip() for line in text.splitlines()]
    starts = [
        index
        for index, line in enumerate(lines[:-1])
        if line.startswith("|") and re.fullmatch(r"\|[\s:|-]*-[\s:|-]*", lines[index + 1])
    ]
    if not starts:
        raise YoyoError(f"{path}: no table; expected a header `| model | task | ... |` and rows.")
    header = _cells(lines[starts[0]])
    results = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        cells = _cells(line)
        if len(cells) != len(header):
            raise YoyoError(
                f"{path}: row {line!r}: expected {len(header)} cells; got {len(cells)}."
            )
        name = _plain(re.sub(r"^[*`\s]+|(?<!\\)[*`\s]+$", "", cells[0]))
        tasks, weights = {}, None
        for head, cell in zip(header[1:], cells[1:], strict=True):
            task, _, metric = _plain(head).partition("<br>")
            if task == "weights":
                weights = _plain(cell) or None
            elif task != "mean" and cell not in {"", "-", "—"}:
                tasks[task] = _read_cell(f"{path}: {name}, {task}", task, metric, cell)
        results.append(ModelResult(name, path, tasks, quantization=weights))
    return results


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


def _cells(line: str) -> list[str]:
    return [
        cell.strip() for cell in re.split(r"(?<!\\)\|", line.removeprefix("|").removesuffix("|"))
    ]


def _plain(text: str) -> str:
    """`text` without the backslashes that keep Markdown from reading it."""
    return re.sub(r"\\([\\|*_`])", r"\1", text)
