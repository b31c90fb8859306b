"""The scores in a model's card: a marked section with the table, and metadata for the Hub.

`model-index` in the front matter holds the row of the model that the folder is; other models of the
table are not the card's to claim. On request the same goes into `.eval_results/*.yaml`, the Hub's
newer form.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from mergekit_yoyo.card import check_card, read_metadata, update_metadata, write_section
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.scores.render import render_markdown
from mergekit_yoyo.scores.results import UNSTATED, ModelResult, TaskResult
from mergekit_yoyo.scores.table import Row, Table

# (path, configuration, split) of the seven tasks' data, for results that do not record it.
_DATASETS = {
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "boolq": ("aps/super_glue", "boolq", "validation"),
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "openbookqa": ("allenai/openbookqa", "main", "test"),
    "piqa": ("baber/piqa", None, "validation"),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
}


def write_card(table: Table, folder: Path, *, eval_results: bool = False) -> list[Path]:
    """Put `table` into the card of `folder`, and its model's scores into the metadata.

    Everything else in the card is kept, other models' and other tasks' entries of `model-index`
    included; a second call with the same table changes nothing.

    Args:
        table: the table; one row must be the folder's model, by name or by the path it was
            run from.
        folder: the model folder; a missing README.md is made.
        eval_results: write `.eval_results/TASK.yaml` too, for tasks whose data is on the Hub.

    Returns:
        The files written.

    Raises:
        YoyoError: no such folder, no row of its model, or a card that the Hub would refuse.
    """
    if not folder.is_dir():
        raise YoyoError(f"--card {folder}: no such folder")
    row = _row_of(table, folder)
    readme = folder / "README.md"
    card = readme.read_bytes().decode() if readme.exists() else ""
    check_card(card)
    metrics = {column.task: column.metric for column in table.columns}
    entries = [
        _index_entry(task, metrics[task], cell.value, row.result)
        for task, cell in row.cells.items()
        if UNSTATED not in row.result.tasks[task].metrics
    ]
    if entries:
        index = _merge_index(read_metadata(card).get("model-index"), folder.resolve().name, entries)
        card = update_metadata(card, {"model-index": index})
    card = write_section(card, "scores", "## Benchmark scores\n\n" + render_markdown(table))
    check_card(card)
    files = {readme: card}
    if eval_results:
        files |= _eval_results(row, metrics, folder / ".eval_results")
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(text, encoding="utf-8", newline="")
        unfinished.replace(path)
    return list(files)


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
        f"{', '.join(names)}. Name one with --name {names[0]}={path.name}"
    )


def _index_entry(task: str, metric: str, value: float, result: ModelResult) -> dict[str, Any]:
    """One result of `model-index`, spelled as the Open LLM Leaderboard spelled its own."""
    shots = result.tasks[task].shots
    path, config, split = _dataset(task, result.tasks[task]) or (task, None, None)
    dataset = {
        "name": task if shots is None else f"{task} ({shots}-shot)",
        "type": path,
        "config": config,
        "split": split,
        "args": None if shots is None else {"num_few_shot": shots},
    }
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {key: entry for key, entry in dataset.items() if entry is not None},
        "metrics": [{"type": metric, "value": round(value, 4), "name": metric}],
    }


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


def _dataset(task: str, result: TaskResult) -> tuple[str, str | None, str | None] | None:
    return result.dataset or _DATASETS.get(task)


def _eval_results(row: Row, metrics: dict[str, str], folder: Path) -> dict[Path, str]:
    """A file for each task whose data has a name on the Hub (local data sets have none)."""
    files = {}
    for task, cell in row.cells.items():
        result = row.result.tasks[task]
        dataset = _dataset(task, result)
        if dataset is None or dataset[0].count("/") != 1 or UNSTATED in result.metrics:
            continue
        setup = {
            metrics[task]: True,
            f"{result.shots}-shot": result.shots is not None,
            f"standard error {cell.stderr or 0:.4f}": cell.stderr is not None,
            "chat template": row.result.chat_template is True,
            "no chat template": row.result.chat_template is False,
            f"lm-eval {row.result.harness}": row.result.harness is not None,
        }
        date = datetime.fromtimestamp(row.result.date, UTC).date().isoformat()
        entry = EvalResultEntry(
            dataset_id=dataset[0],
            task_id=dataset[1] or "default",
            value=round(cell.value, 4),
            date=date if row.result.date else None,
            notes=", ".join(text for text, known in setup.items() if known),
        )
        files[folder / f"{task}.yaml"] = yaml.safe_dump(
            eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True
        )
    return files
