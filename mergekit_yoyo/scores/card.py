"""The scores in a model's card: a marked section with the table, and metadata for the Hub.

`model-index` in the front matter holds the row of the model that the folder is; other models of the
table are not the card's to claim. On request the same goes into `.eval_results/*.yaml`, the Hub's
newer form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index

from mergekit_yoyo.card import check_card, read_card, read_metadata, update_metadata, write_section
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.scores.render import render_markdown
from mergekit_yoyo.scores.results import ModelResult, TaskResult
from mergekit_yoyo.scores.table import Cell, Row, Table
from mergekit_yoyo.seven_tasks import BENCHMARKS
from mergekit_yoyo.staging import write_files


@dataclass(frozen=True)
class CardFiles:
    """What a card would become: `files` by path, and `notes` on what was left out, and why."""

    files: Mapping[Path, bytes]
    notes: Sequence[str]


def write_card(table: Table, folder: Path, *, eval_results: bool = False) -> list[Path]:
    """Write what `prepare_card` gives for the same arguments; returns the files written."""
    prepared = prepare_card(table, folder, eval_results=eval_results)
    write_files(prepared.files)
    return list(prepared.files)


def prepare_card(table: Table, folder: Path, *, eval_results: bool = False) -> CardFiles:
    """Put `table` into the card of `folder`, and its model's scores into the metadata.

    Everything else in the card is kept, other models' and other tasks' entries of `model-index`
    included; the same table changes nothing the second time. The metadata holds measured scores of
    whole tasks only: no part of a task (`--limit`), no number of a Markdown table.

    Args:
        table: the table; one row must be the folder's model, by name or by the path it was
            run from.
        folder: the model folder; a missing README.md is made.
        eval_results: write `.eval_results/TASK.yaml` too, for tasks whose data is on the Hub.

    Returns:
        The files, not yet written.

    Raises:
        YoyoError: no such folder, no row of its model, a card that is not text or that the Hub
            would refuse.
    """
    if not folder.is_dir():
        raise YoyoError(f"--card {folder}: no such folder.")
    row = _row_of(table, folder)
    readme = folder / "README.md"
    card = read_card(readme)
    check_card(card)
    metrics = {column.task: column.metric for column in table.columns}
    cells, notes = _publishable(row)
    entries = [
        _index_entry(task, metrics[task], cell.value, row.result) for task, cell in cells.items()
    ]
    if entries:
        index = _merge_index(read_metadata(card).get("model-index"), folder.resolve().name, entries)
        card = update_metadata(card, {"model-index": index})
    card = write_section(card, "scores", "## Benchmark scores\n\n" + render_markdown(table))
    notes += check_card(card)
    files = {readme: card}
    if eval_results:
        local = [
            task for task in cells if _dataset(task, row.result.tasks[task])[0].count("/") != 1
        ]
        notes += [f"{task}: its data is not on the Hub: no .eval_results file" for task in local]
        hosted = {task: cell for task, cell in cells.items() if task not in local}
        files |= _eval_results(row.result, hosted, metrics, folder / ".eval_results")
    return CardFiles({path: text.encode() for path, text in files.items()}, notes)


def _publishable(row: Row) -> tuple[dict[str, Cell], list[str]]:
    """The cells that metadata may hold, and a note for what it may not."""
    if row.result.source.suffix == ".md":
        return {}, ["scores of a Markdown table are not measured here: not in the metadata"]
    limited = {name: task for name, task in row.result.tasks.items() if task.limited}
    notes = [
        f"{name}: {task.items} of {task.size} items: not in the metadata"
        for name, task in limited.items()
        if name in row.cells
    ]
    return {name: cell for name, cell in row.cells.items() if name not in limited}, notes


def _row_of(table: Table, folder: Path) -> Row:
    path = folder.resolve()
    for row in table.rows:
        if row.result.name == path.name or (
            row.result.model and Path(row.result.model).resolve() == path
        ):
            return row
    names = [row.result.name for row in table.rows]
    raise YoyoError(
        f"--card {folder}: no row of the table is this model; expected one named {path.name}, got "
        f"{', '.join(names)}. Name one with --name {names[0]}={path.name}."
    )


def _index_entry(task: str, metric: str, value: float, result: ModelResult) -> dict[str, Any]:
    """One result of `model-index`, spelled as the Open LLM Leaderboard spelled its own."""
    shots = result.tasks[task].shots
    path, config, split = _dataset(task, result.tasks[task])
    measured = EvalResult(
        task_type="text-generation",
        task_name="Text Generation",
        dataset_type=path,
        dataset_name=task if shots is None else f"{task} ({shots}-shot)",
        dataset_config=config,
        dataset_split=split,
        dataset_args=None if shots is None else {"num_few_shot": shots},
        metric_type=metric,
        metric_name=metric,
        metric_value=round(value, 4),
    )
    # One at a time: of tasks with the same data it would keep the first's name and shots for all.
    (model,) = eval_results_to_model_index(result.name, [measured])
    return dict(model["results"][0])


def _merge_index(present: object, name: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`entries` beside what `model-index` has already, in place of what they measure anew."""
    models: list[dict[str, Any]] = present if isinstance(present, list) and present else []
    first, *others = models or [{"name": name}]
    measured = [_identity(entry) for entry in entries]
    kept = [entry for entry in first.get("results") or [] if _identity(entry) not in measured]
    return [{**first, "results": kept + entries}, *others]


def _identity(entry: dict[str, Any]) -> tuple[Any, ...]:
    dataset = entry.get("dataset") or {}
    metrics = [metric.get("type") for metric in entry.get("metrics") or []]
    return dataset.get("type"), dataset.get("config"), dataset.get("name"), metrics


def _dataset(task: str, result: TaskResult) -> tuple[str, str | None, str | None]:
    """(path, configuration, split) of the task's data; the task itself where none is known."""
    known = BENCHMARKS[task].dataset if task in BENCHMARKS else (task, None, None)
    return result.dataset or known


def _eval_results(
    model: ModelResult, cells: Mapping[str, Cell], metrics: Mapping[str, str], folder: Path
) -> dict[Path, str]:
    """A file for each task of `cells`."""
    files = {}
    for task, cell in cells.items():
        result = model.tasks[task]
        path, config, _ = _dataset(task, result)
        setup = {
            metrics[task]: True,
            f"{result.shots}-shot": result.shots is not None,
            f"standard error {cell.stderr or 0:.4f}": cell.stderr is not None,
            "chat template": model.chat_template is True,
            "no chat template": model.chat_template is False,
            f"lm-eval {model.harness}": model.harness is not None,
        }
        date = datetime.fromtimestamp(model.date, UTC).date().isoformat()
        entry = EvalResultEntry(
            dataset_id=path,
            task_id=config or "default",
            value=round(cell.value, 4),
            date=date if model.date else None,
            notes=", ".join(text for text, known in setup.items() if known),
        )
        files[folder / f"{task}.yaml"] = yaml.safe_dump(
            eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True
        )
    return files
