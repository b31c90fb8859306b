"""Reading results of benchmark runs.

Three kinds of input: the JSON of `mergekit-yoyo evaluate` and of plain `lm_eval` (the same format),
the bare file of `mlx_lm.evaluate` (only the harness's `results`: no model name, no versions) and a
Markdown table of scores, as cards publish them (see `markdown`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mergekit_yoyo.errors import YoyoError, explain_invalid, nearest
from mergekit_yoyo.measured import KEY, Measured
from mergekit_yoyo.outside import load_json, read_text
from mergekit_yoyo.scores.markdown import MARKDOWN_BYTES, read_markdown
from mergekit_yoyo.scores.measures import measures_of
from mergekit_yoyo.scores.quantities import Measure, MeasureColumn
from mergekit_yoyo.scores.results import (
    ModelResult,
    Score,
    TaskResult,
)
from mergekit_yoyo.scores.statistics import is_share
from mergekit_yoyo.seven_tasks import BENCHMARKS

_LARGEST = 1e300  # of a score that is no share: a perplexity
# eval_MODEL_VERSION[_SHOTS]_TASKS, the version being lm-eval's
_MLX_NAME = re.compile(r"eval_(?P<model>.+)_\d+\.\d+\.\d+[^_]*(_\d\d+)?_.+")


def read_results(
    paths: Iterable[Path], names: Mapping[str, str] | None = None
) -> list[ModelResult]:
    """Read every result in `paths`, one entry a model, in the order given.

    Args:
        paths: result files, or folders that hold them (at any depth). The harness's sample files
            among them are passed over: they are read with the results they belong to.
        names: new names by the name a result would have, or by the path it was read from.

    Returns:
        The models. Several files of one model (the harness run task by task) become one entry;
        where they share a task, the newest counts.

    Raises:
        YoyoError: nothing to read, a file of another kind, two models with one name, a name in
            `names` that no result has.
    """
    found: list[ModelResult] = []
    for path in paths:
        if not path.name.startswith("samples_"):
            found.extend(_read(path))
    if not found:
        raise YoyoError(
            "no result files given: expected results of evaluate or lm_eval, or a table."
        )
    renamed = dict(names or {})
    used = set()
    for index, result in enumerate(found):
        for key in (str(result.source), str(result.source.parent), result.name):
            if key in renamed:
                found[index] = replace(result, name=renamed[key])
                used.add(key)
                break
    if unknown := [key for key in renamed if key not in used]:
        raise YoyoError(
            f"--name {unknown[0]}=...: no result has that name or path. "
            + nearest(unknown[0], [result.name for result in found])
        )
    models: dict[str, ModelResult] = {}
    for result in found:
        models[result.name] = (
            _merge(models[result.name], result) if result.name in models else result
        )
    return list(models.values())


def _read(path: Path) -> list[ModelResult]:
    if path.is_dir():
        files = sorted(path.rglob("results_*.json")) or sorted(path.glob("eval_*"))
        if not files:
            raise YoyoError(
                f"{path}: no result file in this folder; expected results_*.json (evaluate, "
                "lm_eval) or eval_* (mlx_lm.evaluate)."
            )
        return [result for file in files for result in _read(file)]
    if not path.exists():
        raise YoyoError(f"{path}: no such file or folder.")
    if path.suffix == ".md":
        return read_markdown(path, read_text(path, MARKDOWN_BYTES))
    data = load_json(read_text(path), path)
    if isinstance(data, dict) and isinstance(data.get("results"), dict):
        return [_read_harness(path, data)]
    if isinstance(data, dict) and data and all(_is_task_entry(entry) for entry in data.values()):
        match = _MLX_NAME.fullmatch(path.name)
        # mlx_lm.evaluate writes the model's path with "/" as "_": "./q4" became "._q4".
        name = match["model"].lstrip("._") if match else path.stem
        return [ModelResult(name, path, _tasks(path, {"results": data}))]
    raise YoyoError(
        f"{path}: not a result file; expected lm-eval's JSON (with `results`), a file of "
        "mlx_lm.evaluate, or a Markdown table of scores (.md)."
    )


def _is_task_entry(entry: object) -> bool:
    return isinstance(entry, dict) and any("," in key for key in entry)


_Name = Annotated[str, Field(max_length=4096)]
_Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Flag = Annotated[bool, Field(strict=True)]


class _Counts(BaseModel):
    effective: _Count | None = None
    original: _Count | None = None


class _Quantization(BaseModel):
    label: _Name | None = None


class _Config(BaseModel):
    model_args: str | dict[str, Any] | None = None
    quantization: _Quantization | None = None


class _Harness(BaseModel):
    """What is read of the harness's JSON; a part that is not there may be null as well."""

    model_config = ConfigDict(protected_namespaces=())

    results: dict[str, dict[str, Any]]
    versions: dict[str, str | int | float | None] | None = None
    shots: dict[str, _Count | None] | None = Field(None, alias="n-shot")
    samples: dict[str, _Counts | None] | None = Field(None, alias="n-samples")
    higher_is_better: dict[str, dict[str, _Flag | None] | None] | None = None
    configs: dict[str, dict[str, Any] | None] | None = None
    config: _Config | None = None
    group_subtasks: dict[str, list[str]] | None = None
    model_name: _Name | None = None
    chat_template: str | _Flag | None = None
    lm_eval_version: str | None = None


def _check_harness(path: Path, data: dict[str, Any]) -> None:
    try:
        checked = _Harness.model_validate(data)
    except ValidationError as error:
        raise YoyoError(f"{path}: not a result file: {explain_invalid(error, data)}.") from None
    groups = checked.group_subtasks or {}
    for group in groups:
        inside, left = set[str](), list(groups[group])
        while left:
            task = left.pop()
            if task == group:
                raise YoyoError(f"{path}: group_subtasks: {group} is inside itself.")
            if task not in inside:
                inside.add(task)
                left += groups.get(task, [])


def _read_harness(path: Path, data: dict[str, Any]) -> ModelResult:
    _check_harness(path, data)
    config = data.get("config") or {}
    model = data.get("model_name") or _pretrained(config.get("model_args"))
    quantization = config.get("quantization") or {}
    # The template that was applied, null for none; very old files have no such key.
    chat_template = bool(data["chat_template"]) if "chat_template" in data else None
    date = data.get("date") or 0.0
    if not isinstance(date, int | float) or not 0 <= date < 1e12:
        raise YoyoError(f"{path}: date: expected seconds since 1970; got {date!r}.")
    name = Path(model).name if model else ""
    if name in {"", ".", ".."}:  # of the folder that it was run in, which is not recorded
        name = path.resolve().parent.name
    measures = _measures(path, data)
    return ModelResult(
        name=name,
        source=path,
        tasks=_tasks(path, data, required=not measures),
        measures=measures,
        model=model,
        quantization=quantization.get("label"),
        chat_template=chat_template,
        harness=data.get("lm_eval_version"),
        date=float(date),
    )


def _measures(path: Path, data: dict[str, Any]) -> dict[MeasureColumn, Measure]:
    if data.get(KEY) is None:
        return {}
    try:
        return measures_of(Measured.model_validate(data[KEY]))
    except ValidationError as error:
        raise YoyoError(f"{path}: {KEY}: {explain_invalid(error, data[KEY])}.") from None


def _pretrained(arguments: object) -> str | None:
    if isinstance(arguments, str):
        arguments = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    if isinstance(arguments, dict):
        name = arguments.get("pretrained") or arguments.get("path_or_hf_repo")
        return name if isinstance(name, str) else None
    return None


def _tasks(path: Path, data: dict[str, Any], *, required: bool = True) -> dict[str, TaskResult]:
    """The tasks and groups of one harness result; a group that has a score stands for its tasks."""
    metrics = {task: _metrics(path, task, entry) for task, entry in data["results"].items()}
    groups = data.get("group_subtasks") or {}
    inside = {task for group, tasks in groups.items() if metrics.get(group) for task in tasks}
    results = {}
    for task, scores in metrics.items():
        if not scores or task in inside:
            continue
        better = (data.get("higher_is_better") or {}).get(task) or {}
        items, size = _counts(task, data)
        version = (data.get("versions") or {}).get(task)
        samples = None
        if "/" not in task:  # else no file has its name
            named = path.stem.replace("results_", f"samples_{task}_", 1)
            samples = path.with_name(f"{named}.jsonl")
        results[task] = TaskResult(
            metrics=scores,
            items=items,
            size=size,
            version=None if version is None else str(version),
            shots=(data.get("n-shot") or {}).get(task),
            lower_is_better=frozenset(
                name for name in scores if better.get(name.split(",")[0]) is False
            ),
            dataset=_dataset((data.get("configs") or {}).get(task) or {}),
            samples=samples if samples and samples.exists() else None,
        )
    if not results and required:
        raise YoyoError(f"{path}: no scores in this result file.")
    return results


def _counts(task: str, data: dict[str, Any]) -> tuple[int | None, int | None]:
    """How many items of `task` were scored, and how many it has; a group has those of its tasks."""
    if members := (data.get("group_subtasks") or {}).get(task):
        counts = [_counts(member, data) for member in members]
        items = [scored for scored, _ in counts if scored is not None]
        sizes = [size for _, size in counts if size is not None]
        whole = len(items) == len(sizes) == len(members)
        return (sum(items), sum(sizes)) if whole else (None, None)
    counted = (data.get("n-samples") or {}).get(task) or {}
    scored = counted.get("effective") or data["results"].get(task, {}).get("sample_len")
    benchmark = BENCHMARKS.get(task)
    return scored, counted.get("original") or (benchmark.items if benchmark else None)


def _metrics(path: Path, task: str, entry: object) -> dict[str, Score]:
    if not isinstance(entry, dict):
        raise YoyoError(f"{path}: task {task}: expected metrics by name; got {entry!r}.")
    scores = {}
    for key, value in entry.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        if isinstance(value, bool) or not -_LARGEST < value < _LARGEST:
            raise YoyoError(f"{path}: task {task}: {metric} is {value}, not a finite number.")
        share = is_share(metric)
        if share and not 0 <= value <= 1:
            raise YoyoError(f"{path}: task {task}: {metric} is {value}: expected 0 to 1.")
        stderr = entry.get(f"{metric}_stderr,{filter_name}")
        if not isinstance(stderr, int | float) or stderr != stderr:
            stderr = None  # the harness writes "N/A" where it has no formula, NaN for one item
        elif not 0 <= stderr <= (1 if share else _LARGEST):
            raise YoyoError(
                f"{path}: task {task}: the standard error of {metric} is {stderr}: impossible."
            )
        name = metric if filter_name == "none" else f"{metric},{filter_name}"
        scores[name] = Score(float(value), stderr)
    return scores


def _dataset(config: Mapping[str, Any]) -> tuple[str, str | None, str | None] | None:
    if not config.get("dataset_path"):
        return None
    split = config.get("test_split") or config.get("validation_split")
    return config["dataset_path"], config.get("dataset_name"), split


def _merge(first: ModelResult, second: ModelResult) -> ModelResult:
    """Two files of one model; YoyoError where they cannot be of one model in one setup."""
    for what, a, b in (
        ("model", first.model, second.model),
        ("quantization", first.quantization, second.quantization),
        ("chat template", first.chat_template, second.chat_template),
    ):
        if a != b:
            raise YoyoError(
                f"{first.source} and {second.source} are both named {first.name} but differ in "
                f"their {what} ({a} and {b}). Name one with --name {second.source}=NEW."
            )
    older, newer = sorted((first, second), key=lambda result: result.date)
    if older.date == newer.date and (shared := older.tasks.keys() & newer.tasks.keys()):
        raise YoyoError(
            f"{first.source} and {second.source} are both named {first.name} and both have "
            f"{', '.join(sorted(shared))}; neither says which is newer. "
            f"Name one with --name {second.source}=NEW."
        )
    return replace(
        newer,
        tasks={**older.tasks, **newer.tasks},
        measures={**older.measures, **newer.measures},
    )
