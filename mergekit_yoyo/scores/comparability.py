"""What keeps rows of a table from being compared, and how its numbers are to be read."""

from collections.abc import Mapping, Sequence

from mergekit_yoyo.scores.results import UNSTATED, ModelResult, TaskResult
from mergekit_yoyo.scores.statistics import score_stderr

_TEMPLATE = {True: "applied", False: "not applied"}


def find_warnings(tasks: Sequence[str], results: Sequence[ModelResult]) -> list[str]:
    """A sentence for each setting in which `results` differ, or which only some of them record."""
    template = {r.name: _TEMPLATE[r.chat_template] for r in results if r.chat_template is not None}
    warnings = _differing("chat template", template)
    for task in tasks:
        rows = {result.name: result.tasks[task] for result in results if task in result.tasks}
        warnings += _differing(f"{task}: task version", _known(rows, "version"))
        warnings += _differing(f"{task}: shots", _known(rows, "shots"))
        warnings += _differing(f"{task}: items", _known(rows, "items"))
    unrecorded = _unrecorded(tasks, results)
    if len(set(unrecorded.values())) > 1:
        for what in dict.fromkeys(unrecorded.values()):
            if what:
                names = [name for name, missing in unrecorded.items() if missing == what]
                warnings.append(f"{what} not recorded for {', '.join(names)}")
    return warnings


def find_notes(metrics: Mapping[str, str], results: Sequence[ModelResult]) -> list[str]:
    """What holds for the whole table: an unknown setup, computed errors, parts of a test set.

    `metrics` has the metric shown of each task.
    """
    notes = []
    unrecorded = set(_unrecorded([*metrics], results).values())
    if len(unrecorded) == 1 and (what := unrecorded.pop()):
        notes.append(f"setup unknown: {what} not recorded")
    computed = [
        result.name
        for result in results
        if any(
            _is_computed(result.tasks[task], metric)
            for task, metric in metrics.items()
            if task in result.tasks
        )
    ]
    if computed:
        whose = "" if len(computed) == len(results) else f" for {', '.join(computed)}"
        notes.append(f"standard errors computed from the number of items{whose}: none reported")
    for task in metrics:
        rows = [result.tasks[task] for result in results if task in result.tasks]
        parts = {(row.items, row.size) for row in rows if row.limited}
        # Where the rows differ in their numbers of items, a warning says so.
        if len(parts) == 1 and len({row.items for row in rows} - {None}) == 1:
            count, size = parts.pop()
            notes.append(f"{task}: {count} of {size} items")
    return notes


def _is_computed(task: TaskResult, metric: str) -> bool:
    """Whether the standard error shown is none that the result reports."""
    shown = UNSTATED if UNSTATED in task.metrics else metric
    return task.metrics[shown].stderr is None and score_stderr(task, shown) is not None


def _known(rows: Mapping[str, TaskResult], what: str) -> dict[str, object]:
    values = {name: getattr(task, what) for name, task in rows.items()}
    return {name: value for name, value in values.items() if value is not None}


def _differing(what: str, values: Mapping[str, object]) -> list[str]:
    """`what` with who has which value, if they differ."""
    distinct = dict.fromkeys(values.values())
    if len(distinct) < 2:
        return []
    groups = [
        f"{value} for {', '.join(name for name, own in values.items() if own == value)}"
        for value in distinct
    ]
    return [f"{what} {'; '.join(groups)}"]


def _unrecorded(tasks: Sequence[str], results: Sequence[ModelResult]) -> dict[str, str]:
    """What each result does not say of its setup, as words; empty where it says everything."""
    missing = {}
    for result in results:
        own = [result.tasks[task] for task in tasks if task in result.tasks]
        what = [
            *(["metric"] if any(UNSTATED in task.metrics for task in own) else []),
            *(["chat template"] if own and result.chat_template is None else []),
            *(["shots"] if any(task.shots is None for task in own) else []),
            *(["task versions"] if any(task.version is None for task in own) else []),
        ]
        missing[result.name] = ", ".join(what)
    return missing
