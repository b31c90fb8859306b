"""Run the harness on models, task by task, and keep what it says in its own format.

The harness does the work. Here stands what it leaves open: which loader a folder needs, one chat
template setting for both loaders, one result file a model that grows task by task (so that a run
resumes where it stopped), and what must be recorded for rows of a table to be comparable.
"""

import gc
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergekit_yoyo import __version__
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.evaluation.harness import (
    check_device,
    check_installed,
    load_model,
    load_tasks,
    task_manager,
)
from mergekit_yoyo.evaluation.measuring import (
    Measuring,
    check_measuring,
    measure_model,
    reference_logits,
)
from mergekit_yoyo.evaluation.model_folder import ModelFolder, open_model
from mergekit_yoyo.evaluation.presets import expand_presets
from mergekit_yoyo.evaluation.store import OF_MODEL, ResultStore
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.seven_tasks import SEVEN_TASKS


@dataclass(frozen=True)
class EvaluationSettings:
    """How models are evaluated; everything here is recorded with the results.

    `tasks` may name presets (`presets.PRESETS`). `num_fewshot` None leaves each task's own number
    (none for the seven tasks). `limit` is the number of items per task, None for all.
    `include_path` holds the user's own task YAMLs. `measuring`: what is measured beside the tasks;
    nothing without texts. `run_code`: tasks may run what the model writes.
    """

    tasks: Sequence[str] = SEVEN_TASKS
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    include_path: Path | None = None
    batch_size: int = 8
    device: str | None = None
    seed: int = 1234
    measuring: Measuring = field(default_factory=Measuring)
    run_code: bool = False


def evaluate(
    models: Sequence[str],
    out: Path = Path("scores"),
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    restart: bool = False,
    progress: Progress = SILENT,
) -> list[Path]:
    """Evaluate each model on each task; tasks that `out` already has, in this setup, are kept.

    Args:
        models: folders (transformers or MLX) or names on the Hub.
        out: for each model a folder NAME with `results_DATE.json` and `samples_TASK_DATE.jsonl`,
            as lm-eval lays them out.
        settings: tasks and setup.
        restart: replace what `out` has of these models.
        progress: told a line at each step; the harness shows its own bars within one.

    Returns:
        The result files, one a model.

    Raises:
        YoyoError: before anything is run: a missing extra, no such model or task, a chat template
            asked for that a model lacks, earlier results of another setup; in between: a model that
            cannot be loaded, a file that cannot be written.
    """
    measuring = settings.measuring
    if not settings.tasks and not measuring.texts and not measuring.against:
        raise YoyoError("no tasks given, and no text to measure on.")
    folders = [open_model(model) for model in models]
    names = [folder.name for folder in folders]
    for folder in folders:
        if names.count(folder.name) > 1:
            raise YoyoError(
                f"two models are named {folder.name}: their results would share a folder. "
                "Evaluate them with different --output."
            )
        if settings.apply_chat_template and not folder.has_chat_template:
            raise YoyoError(f"{folder.given}: --apply-chat-template, but it has no chat template.")
    reference = check_measuring(measuring, folders)
    loaded = [*folders, *([reference] if reference else [])]
    if settings.device and any(folder.backend == "hf" for folder in loaded):
        check_device(settings.device)
    check_installed(loaded, tasks=bool(settings.tasks))
    asked = expand_presets(settings.tasks)
    manager = task_manager(asked, settings.include_path) if asked else None
    stores = []
    for folder in folders:
        setup = _setup(folder, settings)
        if not asked:
            setup = {name: setup[name] for name in OF_MODEL}
        stores.append(ResultStore(out / folder.name, setup, restart=restart))
    tasks = load_tasks(manager, asked, run_code=settings.run_code) if asked else {}
    if measuring.texts:
        _measure_models(folders, stores, settings, reference, progress)
    for folder, store in zip(folders, stores, strict=True) if tasks else ():
        _evaluate_model(folder, store, settings, manager, tasks, progress)
    return [store.path for store in stores]


def _setup(folder: ModelFolder, settings: EvaluationSettings) -> dict[str, Any]:
    """What must be the same for two tasks to stand in one result file."""
    return {
        "model": folder.backend,
        "model_fingerprint": folder.fingerprint,
        "limit": settings.limit,
        "num_fewshot": settings.num_fewshot,
        "apply_chat_template": settings.apply_chat_template,
        "random_seed": settings.seed,
        "lm_eval_version": version("lm_eval") if find_spec("lm_eval") else None,
    }


def _measure_models(
    folders: Sequence[ModelFolder],
    stores: Sequence[ResultStore],
    settings: EvaluationSettings,
    reference: ModelFolder | None,
    progress: Progress,
) -> None:
    """Measure each model that is not measured in this setup yet."""
    measuring, device = settings.measuring, settings.device
    setup = measuring.setup(device, reference)
    remaining = [
        (folder, store)
        for folder, store in zip(folders, stores, strict=True)
        if not store.is_measured(setup)
    ]
    if not remaining:
        return
    with reference_logits(reference, measuring, device, progress) as logits:
        for folder, store in remaining:
            measured = measure_model(
                folder, measuring, reference, logits, device=device, progress=progress
            )
            store.add_measured(measured, _identity(folder, settings))


def _identity(folder: ModelFolder, settings: EvaluationSettings) -> dict[str, Any]:
    """What a result file records of the model, whatever was run."""
    return {
        "config": {
            **_setup(folder, settings),
            "model_args": {"pretrained": folder.given},
            "quantization": folder.quantization,
        },
        "model_source": folder.backend,
        "model_name": folder.given,
        "model_name_sanitized": folder.name,
        "mergekit_yoyo_version": __version__,
    }


def _evaluate_model(
    folder: ModelFolder,
    store: ResultStore,
    settings: EvaluationSettings,
    manager: Any,
    tasks: dict[str, str],
    progress: Progress,
) -> None:
    remaining = [task for task, config_hash in tasks.items() if not store.has(task, config_hash)]
    kind = "MLX" if folder.backend == "mlxlm" else "transformers"
    label = folder.quantization["label"]
    progress.say(f"{folder.name} ({kind}{f', {label}' if label else ''})")
    if kept := [task for task in tasks if task not in remaining]:
        progress.say(f"  already done: {', '.join(kept)}")
    if not remaining:
        return
    lm = load_model(
        folder,
        batch_size=settings.batch_size,
        device=settings.device,
        chat_template=settings.apply_chat_template,
        seed=settings.seed,
    )
    for task in remaining:
        started = time.perf_counter()
        place = f"{list(tasks).index(task) + 1}/{len(tasks)}"
        progress.say(f"  {place} {task} ...")
        result, samples = _run_task(lm, task, folder, settings, manager)
        seconds = time.perf_counter() - started
        result["total_evaluation_time_seconds"] = str(seconds)
        store.add(task, tasks[task], result, samples)
        progress.say(f"  {place} {task}: {_summary(task, result)} ({seconds:.0f} s)")
    del lm
    gc.collect()  # the next model may need the memory


def _summary(task: str, result: dict[str, Any]) -> str:
    if task not in result["results"]:  # a tag stands for tasks and has no score of its own
        return ", ".join(result["results"])
    return ", ".join(
        f"{key.removesuffix(',none')} {value:.3f}"
        for key, value in result["results"][task].items()
        if isinstance(value, float) and "," in key and "_stderr" not in key
    )


def _run_task(
    lm: Any, task: str, folder: ModelFolder, settings: EvaluationSettings, manager: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The harness's result for one task, and its samples; the setup recorded in the result."""
    from lm_eval import simple_evaluate

    seed = settings.seed
    result = simple_evaluate(
        model=lm,
        tasks=[task],
        num_fewshot=settings.num_fewshot,
        batch_size=settings.batch_size,
        device=settings.device,
        limit=settings.limit,
        apply_chat_template=settings.apply_chat_template,
        task_manager=manager,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        confirm_run_unsafe_code=settings.run_code,
    )
    samples = result.pop("samples")
    template = lm.tokenizer.chat_template if settings.apply_chat_template else None
    identity = _identity(folder, settings)
    result["config"].update(
        identity.pop("config"), device=str(lm.device) if folder.backend == "hf" else None
    )
    result.update(
        **identity,
        system_instruction=None,
        system_instruction_sha=None,
        fewshot_as_multiturn=True,  # the harness's default; without examples it changes nothing
        chat_template=template,
        chat_template_sha=template and hashlib.sha256(template.encode()).hexdigest(),
    )
    if folder.backend == "mlxlm":
        result.update(mlx_lm_version=version("mlx-lm"), mlx_version=version("mlx"))
    return result, samples
