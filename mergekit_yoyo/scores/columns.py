"""The columns of a table: which tasks and measures, and the metric that each task is shown in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mergekit_yoyo.errors import YoyoError, nearest
from mergekit_yoyo.scores.quantities import is_measure
from mergekit_yoyo.scores.results import UNSTATED, ModelResult
from mergekit_yoyo.seven_tasks import SEVEN_TASKS

# Length-normalized accuracy where the task has it: the metric of the published tables.
_PREFERRED = ("acc_norm", "acc")


@dataclass(frozen=True)
class Column:
    """A task and the metric shown for it (`UNSTATED` where no row states one)."""

    task: str
    metric: str
    lower_is_better: bool = False


def split_names(
    results: Sequence[ModelResult], names: Sequence[str] | None
) -> tuple[list[str] | None, list[str] | None]:
    """The tasks and the measures among the names of columns; None for both means all."""
    if names is None:
        return None, None
    found = {task for result in results for task in result.tasks}
    measures = [name for name in names if is_measure(name) and name not in found]
    return [name for name in names if name not in measures], measures


def choose_columns(
    results: Sequence[ModelResult],
    tasks: Sequence[str] | None = None,
    metrics: Mapping[str, str] | None = None,
) -> list[Column]:
    """The tasks of a table of `results`, each with its metric; arguments as for `build_table`."""
    found = dict.fromkeys(task for result in results for task in result.tasks)
    if tasks is None:
        tasks = [task for task in SEVEN_TASKS if task in found]
        tasks += [task for task in found if task not in SEVEN_TASKS]
    wanted = metrics or {}
    for name in (*tasks, *wanted):
        if name not in found:
            raise YoyoError(f"no result has a task {name}. {nearest(name, found)}")
    return [_column(task, results, wanted.get(task)) for task in tasks]


def narrow(result: ModelResult, columns: Sequence[Column]) -> ModelResult:
    """`result` with the tasks of the table only, each with the one metric of its column.

    A number whose metric is unstated goes where its task goes.
    """
    tasks = {}
    for column in columns:
        if task := result.tasks.get(column.task):
            metric = UNSTATED if UNSTATED in task.metrics else column.metric
            tasks[column.task] = replace(task, metrics={column.metric: task.metrics[metric]})
    return replace(result, tasks=tasks)


def _column(task: str, results: Sequence[ModelResult], wanted: str | None) -> Column:
    stated = [
        result
        for result in results
        if task in result.tasks and UNSTATED not in result.tasks[task].metrics
    ]
    if not stated:
        if wanted is not None:
            raise YoyoError(
                f"--metric {task}={wanted}: no result states the metric of {task}, so none can be "
                "chosen. Leave this out."
            )
        return Column(task, UNSTATED)
    available = [set(result.tasks[task].metrics) for result in stated]
    common = set.intersection(*available)
    if wanted is not None:
        for result, has in zip(stated, available, strict=True):
            if wanted not in has:
                raise YoyoError(
                    f"{result.source}: task {task} has no metric {wanted}; it has "
                    f"{', '.join(sorted(has))}."
                )
        metric = wanted
    else:
        choices = [name for name in _PREFERRED if name in common] or sorted(common)
        if not choices or (choices[0] not in _PREFERRED and len(choices) > 1):
            raise YoyoError(
                f"task {task}: no metric to show by itself: the results have "
                f"{', '.join(sorted(set.union(*available)))}. Choose one that all of them have: "
                f"--metric {task}=METRIC."
            )
        metric = choices[0]
    lower = any(metric in result.tasks[task].lower_is_better for result in stated)
    return Column(task, metric, lower)
