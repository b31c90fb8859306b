"""Two models, task by task: how far apart they are, how sure that is, and on which items."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.scores.columns import Column, choose_columns, narrow, split_names
from mergekit_yoyo.scores.comparability import find_warnings
from mergekit_yoyo.scores.measures import choose_measures, measure_difference, measure_warnings
from mergekit_yoyo.scores.quantities import MeasureColumn
from mergekit_yoyo.scores.results import ModelResult
from mergekit_yoyo.scores.statistics import (
    Difference,
    ItemKey,
    difference,
    item_key,
    item_scores,
    mean_difference,
    read_samples,
)
from mergekit_yoyo.scores.table import averaged


@dataclass(frozen=True)
class TaskComparison:
    """One task: the scores of both models, and a - b.

    `gained` are the items on which `a` scores higher than `b`, `lost` those on which it scores
    lower; None where the two have no scores of the same items.
    """

    column: Column
    a: float
    b: float
    difference: Difference
    gained: frozenset[ItemKey] | None
    lost: frozenset[ItemKey] | None


@dataclass(frozen=True)
class MeasureComparison:
    """What was measured of both: the two numbers, and a - b."""

    column: MeasureColumn
    a: float
    b: float
    difference: Difference


@dataclass(frozen=True)
class ScoreComparison:
    """What two models share, and what keeps the two from being compared.

    mean: of the differences, None where tasks have no mean (`averaged`).
    """

    a: ModelResult
    b: ModelResult
    tasks: Sequence[TaskComparison]
    warnings: Sequence[str]
    mean: Difference | None
    measures: Sequence[MeasureComparison]


def compare(
    a: ModelResult,
    b: ModelResult,
    tasks: Sequence[str] | None = None,
    metrics: Mapping[str, str] | None = None,
) -> ScoreComparison:
    """Compare two models on the tasks both have, item by item where both have the same items.

    Args:
        a, b: the models.
        tasks, metrics: as for `build_table`.

    Raises:
        YoyoError: nothing in common; a task, measure or metric that is not there.
    """
    pair = [a, b]
    tasks, named = split_names(pair, tasks)
    measures = [
        MeasureComparison(
            column,
            a.measures[column].value,
            b.measures[column].value,
            measure_difference(column, a.measures[column], b.measures[column]),
        )
        for column in choose_measures([a.measures, b.measures], named)
        if column in a.measures and column in b.measures
    ]
    columns = [
        column
        for column in choose_columns(pair, tasks, metrics)
        if column.task in a.tasks and column.task in b.tasks
    ]
    if not columns and not measures:
        raise YoyoError(
            f"{a.name} and {b.name} share no task: {', '.join(a.tasks)} and {', '.join(b.tasks)}."
        )
    comparisons = []
    narrow_a, narrow_b = (narrow(result, columns) for result in pair)
    for column in columns:
        task_a, task_b = narrow_a.tasks[column.task], narrow_b.tasks[column.task]
        gap = difference(task_a, task_b, column.metric)
        gained = lost = None
        if gap.paired:
            items_a = item_scores(task_a, column.metric) or {}
            items_b = item_scores(task_b, column.metric) or {}
            gained = frozenset(key for key in items_a if items_a[key] > items_b[key])
            lost = frozenset(key for key in items_a if items_a[key] < items_b[key])
        value_a = task_a.metrics[column.metric].value
        value_b = task_b.metrics[column.metric].value
        comparisons.append(TaskComparison(column, value_a, value_b, gap, gained, lost))
    warnings = find_warnings([c.task for c in columns], pair)
    mean = None
    if columns and averaged(columns, [narrow_a, narrow_b]):
        mean = mean_difference([task.difference for task in comparisons])
    own = {result.name: result.measures for result in pair}
    warnings += measure_warnings([measure.column for measure in measures], own)
    return ScoreComparison(a, b, comparisons, warnings, mean, measures)


def flipped_items(comparison: ScoreComparison) -> Iterator[dict[str, Any]]:
    """The items that the two models score differently: the document, and what each answered.

    Yields dictionaries with `task`, `doc_id`, `doc`, `target`, `prompt`, and for each of `a` and
    `b` its score and the harness's `filtered_resps`.

    Raises:
        YoyoError: a task has no scores of the same items in both.
    """
    a, b = comparison.a, comparison.b
    for task in comparison.tasks:
        if task.gained is None:
            raise YoyoError(
                f"{task.column.task}: no samples of the same items in {a.name} and {b.name}. "
                "Evaluate both with samples (`evaluate` keeps them, lm_eval with --log_samples), "
                "or choose others with --columns."
            )
    return (item for task in comparison.tasks for item in _flipped(a, b, task))


def _flipped(a: ModelResult, b: ModelResult, task: TaskComparison) -> Iterator[dict[str, Any]]:
    name, metric = task.column.task, task.column.metric
    own_a, own_b = a.tasks[name].samples, b.tasks[name].samples
    assert own_a
    assert own_b  # without samples there are no flipped items
    flipped = (task.gained or frozenset()) | (task.lost or frozenset())
    others = {
        item_key(sample): sample
        for sample in read_samples(own_b, metric)
        if item_key(sample) in flipped
    }
    for sample in read_samples(own_a, metric):
        if other := others.get(item_key(sample)):
            yield {
                "task": name,
                "doc_id": sample["doc_id"],
                "doc": sample.get("doc"),
                "target": sample.get("target"),
                "prompt": sample["arguments"]["gen_args_0"]["arg_0"],
                "a": _answer(sample, metric),
                "b": _answer(other, metric),
            }


def _answer(sample: Mapping[str, Any], metric: str) -> dict[str, Any]:
    return {"score": sample[metric.partition(",")[0]], "responses": sample["filtered_resps"]}
