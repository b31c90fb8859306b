"""The table for the terminal (rich), as Markdown and as CSV; a comparison for the terminal."""

import csv
import io
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from mergekit_yoyo.scores.columns import Column
from mergekit_yoyo.scores.compare import ScoreComparison
from mergekit_yoyo.scores.statistics import Difference
from mergekit_yoyo.scores.table import Cell, Table

_LEGEND = "± standard error; {mark} best of its column: leads every other row beyond 95 %"
_P_VALUE = (
    "p: how likely a difference at least as large is between models that are equally good, by "
    "{tests}"
)


def render_terminal(table: Table) -> RenderableType:
    """The table for `rich`: the standard error under each score, the best in bold with a star.

    What was measured beside the tasks is a table of its own, below.
    """
    grids = [_task_grid(table)] if table.columns else []
    grids += [_measure_grid(table)] if table.measures else []
    lines = [Text(f"Warning: {warning}", style="bold yellow") for warning in table.warnings]
    lines += [Text(_LEGEND.format(mark="*"), style="dim")]
    lines += [Text(note, style="dim") for note in table.notes]
    return Group(*grids, *lines)


def _task_grid(table: Table) -> RichTable:
    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    grid.add_column("model", overflow="fold")
    quantized = _any_quantized(table)
    if quantized:
        grid.add_column("quantization", overflow="fold")
    for column in table.columns:
        grid.add_column(
            Text(f"{_broken(column.task)}\n{_metric(column)}"), justify="right", overflow="fold"
        )
    if table.has_mean:
        grid.add_column(Text("mean"), justify="right")
    for row in table.rows:
        cells = [_terminal_cell(row.cells.get(column.task)) for column in table.columns]
        grid.add_row(
            Text(row.result.name),
            *([Text(row.result.quantization or "")] if quantized else []),
            *cells,
            *([_terminal_cell(row.mean)] if table.has_mean else []),
        )
    return grid


def _measure_grid(table: Table) -> RichTable:
    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("model", overflow="fold")
    for column in table.measures:
        title = Text(f"{column.title}\n{column.subtitle}")
        longest = max(map(len, column.title.split()))
        grid.add_column(title, justify="right", overflow="fold", min_width=longest)
    for row in table.rows:
        cells = [_terminal_cell(row.measures.get(c), c.kind.show) for c in table.measures]
        grid.add_row(Text(row.result.name), *cells)
    return grid


def render_markdown(table: Table) -> str:
    """The table as Markdown, the best in bold, warnings and notes below it."""
    quantized = _any_quantized(table)
    header = ["model"] + (["quantization"] if quantized else [])
    header += [f"{_escape(column.task)}<br>{_escape(_metric(column))}" for column in table.columns]
    header += ["mean"] if table.has_mean else []
    header += [f"{_escape(c.title)}<br>{_escape(c.subtitle)}" for c in table.measures]
    text_columns = 1 + quantized
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    lines = [header, rule]
    for row in table.rows:
        line = [_escape(row.result.name)]
        line += [_escape(row.result.quantization or "")] if quantized else []
        line += [_markdown_cell(row.cells.get(column.task)) for column in table.columns]
        line += [_markdown_cell(row.mean)] if table.has_mean else []
        line += [_markdown_cell(row.measures.get(c), c.kind.show) for c in table.measures]
        lines.append(line)
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    for warning in table.warnings:
        text += f"\n**Warning:** {_escape(warning)}.\n"
    notes = [_LEGEND.format(mark="**bold**"), *map(_escape, table.notes)]
    return text + "\n" + "; ".join(notes) + ".\n"


def render_csv(table: Table) -> str:
    """One line per model and task (and mean): the numbers in full, for other programs."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["model", "quantization", "task", "metric", "score", "stderr", "items", "best", "p"]
    )
    for row in table.rows:
        name, quantization = row.result.name, row.result.quantization or ""
        for column in table.columns:
            if cell := row.cells.get(column.task):
                items = row.result.tasks[column.task].items
                writer.writerow(
                    [name, quantization, column.task, column.metric, *_numbers(cell, items)]
                )
        if row.mean:
            writer.writerow([name, quantization, "mean", "", *_numbers(row.mean, None)])
        for measure in table.measures:
            if own := row.measures.get(measure):
                about = [measure.quantity, measure.subtitle]
                writer.writerow([name, quantization, *about, *_numbers(own, None)])
    return buffer.getvalue()


def render_comparison(comparison: ScoreComparison) -> RenderableType:
    """Two models task by task: their difference, its standard error, and the items that flipped."""
    a, b = comparison.a.name, comparison.b.name
    grid = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("task")
    grid.add_column("metric")
    for name in (a, b, "difference", "paired items", "flipped", "p"):
        grid.add_column(Text(name), justify="right", overflow="fold")
    for task in comparison.tasks:
        flips = "—"
        if task.gained is not None and task.lost is not None:
            flips = f"{len(task.gained) + len(task.lost)} (+{len(task.gained)} -{len(task.lost)})"
        grid.add_row(
            task.column.task,
            _metric(task.column),
            f"{task.a:.4f}",
            f"{task.b:.4f}",
            *_gap_cells(task.difference, flips),
        )
    if comparison.mean:
        grid.add_section()
        grid.add_row("mean", "", "", "", *_gap_cells(comparison.mean, "—"))
    if comparison.measures:
        grid.add_section()
    for measure in comparison.measures:
        column, show = measure.column, measure.column.kind.show
        grid.add_row(
            Text(column.title),
            Text(column.subtitle),
            *(show(measure.a), show(measure.b)),
            *_gap_cells(measure.difference, "—", show, exact=not column.kind.on_text),
        )
    gaps = [task.difference for task in comparison.tasks]
    gaps += [measure.difference for measure in comparison.measures]
    lines = [Text(f"Warning: {w}", style="bold yellow") for w in comparison.warnings]
    lines.append(Text(_verdict(comparison), style="bold"))
    gaps += [comparison.mean] if comparison.mean else []
    if tests := dict.fromkeys(gap.test for gap in gaps if gap.p_value is not None):
        lines.append(Text(_P_VALUE.format(tests=", ".join(tests)), style="dim"))
    return Group(grid, *lines)


def _verdict(comparison: ScoreComparison) -> str:
    a, b = comparison.a.name, comparison.b.name
    gaps = {task.column.task: task.difference for task in comparison.tasks}
    unknown = [name for name, gap in gaps.items() if gap.p_value is None]
    for measure in comparison.measures:  # those of size and speed have no error
        if measure.column.kind.on_text:
            gaps[f"{measure.column.title} {measure.column.on or ''}".strip()] = measure.difference
    if all(gap.p_value is None for gap in gaps.values()):
        return f"whether {a} and {b} differ is unknown: no task has a standard error"
    beyond = [name for name, gap in gaps.items() if gap.differs]
    verdict = f"{a} and {b} differ beyond 95 % on {', '.join(beyond) if beyond else 'no task'}"
    return verdict + (f"; unknown on {', '.join(unknown)}: no standard error" if unknown else "")


def _gap_cells(
    gap: Difference,
    flips: str,
    show: Callable[[float], str] = "{:.4f}".format,
    *,
    exact: bool = False,
) -> list[Text]:
    """Difference, paired items, flipped items and p; `exact`: none of a sample."""
    error = "" if exact else f" ± {'?' if gap.stderr is None else show(gap.stderr)}"
    sign = "-" if gap.value < 0 else "+"
    return [
        Text(f"{sign}{show(abs(gap.value))}{error}", style="bold" if gap.differs else ""),
        Text("—" if exact else str(gap.items or "unpaired")),
        Text(flips),
        Text("—" if gap.p_value is None else f"{gap.p_value:.2g}"),
    ]


def _numbers(cell: Cell, items: int | None) -> list[float | int | None]:
    p_value = cell.lead.p_value if cell.lead else None
    return [cell.value, cell.stderr, items, int(cell.best), p_value]


def _any_quantized(table: Table) -> bool:
    return any(row.result.quantization for row in table.rows)


def _broken(task: str) -> str:
    """A long name in two lines, so that a narrow column holds it."""
    return task.replace("_", "_\n", 1) if len(task) > 10 else task


def _metric(column: Column) -> str:
    return column.metric + (" (lower is better)" if column.lower_is_better else "")


def _share(value: float) -> str:
    return f"{value:.3f}"


def _terminal_cell(cell: Cell | None, show: Callable[[float], str] = _share) -> Text:
    if cell is None:
        return Text("—", style="dim")
    text = Text(show(cell.value), style="bold green" if cell.best else "")
    text.append("*" if cell.best else " ")
    if cell.stderr is not None:
        text.append(f"\n±{show(cell.stderr)} ", style="dim not bold")
    return text


def _markdown_cell(cell: Cell | None, show: Callable[[float], str] = _share) -> str:
    if cell is None:
        return "—"
    value = show(cell.value) + ("" if cell.stderr is None else f" ± {show(cell.stderr)}")
    return f"**{value}**" if cell.best else value


def _escape(text: str) -> str:
    """Names and metrics as plain text in a Markdown table."""
    for character in "\\|*_`":
        text = text.replace(character, "\\" + character)
    return text
