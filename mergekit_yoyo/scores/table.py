"""The table of scores: one row a model, one column a task, and what may be read off it.

The best of a column is marked only where it is told apart from every other row beyond 95 %.
Everything that makes rows not comparable stands in the table as a warning.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mergekit_yoyo.scores.columns import Column, choose_columns, narrow, split_names
from mergekit_yoyo.scores.comparability import find_notes, find_warnings
from mergekit_yoyo.scores.measures import (
    choose_measures,
    measure_difference,
    measure_notes,
    measure_warnings,
)
from mergekit_yoyo.scores.quantities import MeasureColumn
from mergekit_yoyo.scores.results import ModelResult
from mergekit_yoyo.scores.statistics import (
    Difference,
    difference,
    mean_difference,
    mean_of,
    score_stderr,
)


@dataclass(frozen=True)
class Cell:
    """A score with its standard error; `best` where the numbers bear that out.

    lead: of the highest score of its column, the lead over the row that it is least told apart
    from.
    """

    value: float
    stderr: float | None
    lead: Difference | None = None

    @property
    def best(self) -> bool:
        return self.lead is not None and self.lead.differs


@dataclass(frozen=True)
class Row:
    """A model, its cells by task, their mean if it has every task of the table, its measures."""

    result: ModelResult
    cells: Mapping[str, Cell]
    mean: Cell | None
    measures: Mapping[MeasureColumn, Cell]


@dataclass(frozen=True)
class _Top:
    """The first row of a column, and its lead over the row that it is least told apart from."""

    row: ModelResult
    lead: Difference


@dataclass(frozen=True)
class Table:
    """What the renderers draw. `warnings` say what does not compare, `notes` how to read it."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    warnings: Sequence[str]
    setup_notes: Sequence[str]
    lead_notes: Sequence[str]
    measures: Sequence[MeasureColumn] = ()
    measure_notes: Sequence[str] = ()

    @property
    def notes(self) -> list[str]:
        """How the scores came about, how their leads were compared, what the measures are."""
        return [*self.setup_notes, *self.lead_notes, *self.measure_notes]

    @property
    def has_mean(self) -> bool:
        return any(row.mean for row in self.rows)


def build_table(
    results: Sequence[ModelResult],
    tasks: Sequence[str] | None = None,
    metrics: Mapping[str, str] | None = None,
) -> Table:
    """Choose a metric per task, mark what is best beyond doubt, and warn of what does not compare.

    Args:
        results: the rows, in order.
        tasks: the columns, in order; without it, all tasks: first the seven, then others as found,
            and all measures. A measure is named by its quantity (`QUANTITIES`), or by that and the
            text, `perplexity:code`.
        metrics: the metric to show, by task. Without one: acc_norm where every row has it, else
            acc, else the only metric there is.

    Returns:
        The table.

    Raises:
        YoyoError: a task or metric that is not there, or a task whose metric must be chosen.
    """
    tasks, named = split_names(results, tasks)
    measures = choose_measures([result.measures for result in results], named)
    columns = choose_columns(results, tasks, metrics)
    shown = [narrow(result, columns) for result in results]
    tops = {column.task: _top_of(column, shown) for column in columns}
    complete = averaged(columns, shown)
    top_mean = _top(
        complete,
        lambda row: _mean(row, columns).value,
        lambda a, b: _mean_lead(a, b, columns),
    )
    measure_tops = {column: _top_measure(column, results) for column in measures}
    rows = []
    for result, row in zip(results, shown, strict=True):
        cells = {
            column.task: _mark(row, _score(row, column), tops[column.task])
            for column in columns
            if column.task in row.tasks
        }
        mean = _mark(row, _mean(row, columns), top_mean) if row in complete else None
        own = {
            column: _mark(result, Cell(measure.value, measure.stderr), measure_tops[column])
            for column, measure in result.measures.items()
            if column in measure_tops
        }
        rows.append(Row(result, cells, mean, own))
    shown_tasks = [column.task for column in columns]
    notes = find_notes({c.task: c.metric for c in columns}, results)
    by_name = {result.name: result.measures for result in results}
    return Table(
        columns,
        rows,
        [*find_warnings(shown_tasks, results), *measure_warnings(measures, by_name)],
        notes if columns else [],
        _pairing(tops),
        measures,
        measure_notes(measures, by_name),
    )


def _score(row: ModelResult, column: Column) -> Cell:
    task = row.tasks[column.task]
    return Cell(task.metrics[column.metric].value, score_stderr(task, column.metric))


def averaged(columns: Sequence[Column], rows: Sequence[ModelResult]) -> list[ModelResult]:
    """The rows with a mean: those that have every task, if all scores are shares, 1 the best."""
    shares = all(
        0 <= _score(row, column).value <= 1 and not column.lower_is_better
        for column in columns
        for row in rows
        if column.task in row.tasks
    )
    if len(columns) < 2 or not shares:
        return []
    return [row for row in rows if len(row.tasks) == len(columns)]


def _mean(row: ModelResult, columns: Sequence[Column]) -> Cell:
    cells = [_score(row, column) for column in columns]
    return Cell(*mean_of([cell.value for cell in cells], [cell.stderr for cell in cells]))


def _mean_lead(a: ModelResult, b: ModelResult, columns: Sequence[Column]) -> Difference:
    gaps = [difference(a.tasks[c.task], b.tasks[c.task], c.metric) for c in columns]
    return mean_difference(gaps)


def _top_of(column: Column, rows: Sequence[ModelResult]) -> _Top | None:
    sign = -1 if column.lower_is_better else 1
    task = column.task
    return _top(
        [row for row in rows if task in row.tasks],
        lambda row: sign * _score(row, column).value,
        lambda a, b: difference(a.tasks[task], b.tasks[task], column.metric),
    )


def _top_measure(column: MeasureColumn, rows: Sequence[ModelResult]) -> _Top | None:
    sign = -1 if column.kind.lower_is_better else 1
    return _top(
        [row for row in rows if column in row.measures],
        lambda row: sign * row.measures[column].value,
        lambda a, b: measure_difference(column, a.measures[column], b.measures[column]),
    )


def _top(
    rows: Iterable[ModelResult],
    value: Callable[[ModelResult], float],
    compare: Callable[[ModelResult, ModelResult], Difference],
) -> _Top | None:
    """The first row by `value` with its smallest lead; None for fewer than two rows."""
    ordered = sorted(rows, key=value, reverse=True)
    if len(ordered) < 2:
        return None
    leads = [compare(ordered[0], other) for other in ordered[1:]]
    return _Top(
        ordered[0], max(leads, key=lambda lead: 2.0 if lead.p_value is None else lead.p_value)
    )


def _mark(row: ModelResult, cell: Cell, top: _Top | None) -> Cell:
    """`cell` with its lead, if `row` is the first."""
    return replace(cell, lead=top.lead) if top is not None and row is top.row else cell


def _pairing(tops: Mapping[str, _Top | None]) -> list[str]:
    """Which of the leads were taken item by item, and the p of each."""
    leads = {task: top.lead for task, top in tops.items() if top}
    if not leads:
        return []
    unpaired = [task for task, lead in leads.items() if not lead.paired]
    how = "item by item (paired)"
    if len(unpaired) == len(leads):
        how = "as independent (unpaired: no scores of the same items)"
    elif unpaired:
        how += f", except for {', '.join(unpaired)} (unpaired)"
    shown = [f"{t} {lead.p_value:.2g}" for t, lead in leads.items() if lead.p_value is not None]
    return [f"leads compared {how}" + (f"; p: {', '.join(shown)}" if shown else "")]
