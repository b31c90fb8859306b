"""The harness's tasks and models, with what it leaves silent or open settled beforehand."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError, nearest
from mergekit_yoyo.evaluation.model_folder import ModelFolder
from mergekit_yoyo.install import install_line

_CODE_VARIABLE = "HF_ALLOW_CODE_EVAL"  # Hugging Face's own consent to run what a model writes


def check_installed(folders: Sequence[ModelFolder], *, tasks: bool) -> None:
    """Refuse to start without the packages that load `folders`, and run tasks if there are any."""
    if tasks and find_spec("lm_eval") is None:
        raise YoyoError(f"evaluate needs lm-eval: {install_line('eval')}")
    for folder in folders:
        if folder.backend == "mlxlm" and find_spec("mlx_lm") is None:
            raise YoyoError(f"{folder.given}: an MLX folder needs mlx-lm: {install_line('mlx')}")


def check_device(name: str) -> None:
    """Refuse what torch does not have here: the harness takes another device without a word."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    names = ["cpu"]
    if accelerator:
        count = torch.accelerator.device_count()
        names += [accelerator.type, *(f"{accelerator.type}:{index}" for index in range(count))]
    if name not in names:
        raise YoyoError(
            f"--device {name}: torch has no such device here; it has {', '.join(names)}."
        )


def chosen_device(given: str | None) -> str:
    """The device for transformers: the one given, else the accelerator, else the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return given or (accelerator.type if accelerator else "cpu")


def task_manager(names: Sequence[str], include: Path | None) -> Any:
    """The harness's task manager, which knows all of `names`.

    Args:
        names: tasks, groups or tags.
        include: a folder with more of them.

    Raises:
        YoyoError: no such folder or task.
    """
    from lm_eval.tasks import TaskManager

    _quiet_harness()
    if include is not None and not include.is_dir():
        raise YoyoError(f"--include-path {include}: no such folder.")
    manager = TaskManager(include_path=None if include is None else str(include))
    for name in names:
        if name not in manager.all_tasks:
            raise YoyoError(f"no task {name} in lm-eval. {nearest(name, manager.all_tasks)}")
    return manager


def load_tasks(manager: Any, names: Sequence[str], *, run_code: bool = False) -> dict[str, str]:
    """The tasks, loaded, with a hash of each one's configuration.

    Args:
        manager: of `task_manager`.
        names: tasks, groups or tags.
        run_code: whether tasks may run what a model writes.

    Raises:
        YoyoError: a task whose data cannot be loaded, or one that runs what a model writes where
            that is not allowed.
    """
    if run_code:
        os.environ[_CODE_VARIABLE] = "1"
    hashes = {}
    for name in names:
        try:
            loaded = manager.load([name])["tasks"]
        except Exception as error:  # whatever a task's own code and the data set library raise
            if not run_code and _CODE_VARIABLE in str(error):
                raise _runs_code(name) from None
            raise YoyoError(
                f"task {name}: its data could not be loaded: {_stated(error)}."
            ) from error
        if not run_code and any(getattr(task, "UNSAFE_CODE", False) for task in loaded.values()):
            raise _runs_code(name)
        configs = {task: dict(loaded[task].dump_config()) for task in loaded}
        for task, config in configs.items():
            config.pop("num_fewshot", None)  # part of the settings
            config["metadata"] = loaded[task].VERSION  # the rest of it is where the YAML lies
        dump = json.dumps(configs, sort_keys=True, default=str)
        hashes[name] = hashlib.sha256(dump.encode()).hexdigest()
    return hashes


def load_model(
    folder: ModelFolder, *, batch_size: int, device: str | None, chat_template: bool, seed: int
) -> Any:
    """The harness's model of `folder`, which adds no special token to a chat template.

    Raises:
        YoyoError: transformers or mlx-lm cannot load it.
    """
    try:
        return _load(folder, batch_size, device, chat_template, seed)
    except Exception as error:  # whatever the loader, torch or the model's own code raise
        loader = "mlx-lm" if folder.backend == "mlxlm" else "transformers"
        raise YoyoError(
            f"{folder.given}: {loader} cannot load this model: {_stated(error)}."
        ) from error


def _load(
    folder: ModelFolder, batch_size: int, device: str | None, chat_template: bool, seed: int
) -> Any:
    import lm_eval.models  # noqa: F401  before mlx-lm registers: lm-eval fills an empty registry only

    path = str(folder.path)
    if folder.backend == "mlxlm":
        import mlx.core as mx
        from mlx_lm.evaluate import MLXLM

        mx.random.seed(seed)
        return MLXLM(
            path,
            batch_size=batch_size,
            # Left alone, it applies the chat template whenever there is one.
            use_chat_template=chat_template,
        )
    from lm_eval.api.registry import get_model

    return get_model("hf")(
        pretrained=path,
        batch_size=batch_size,
        device=chosen_device(device),
        # A template writes its own special tokens; mlx-lm's wrapper adds none to it either.
        add_bos_token=False if chat_template else None,
    )


def _runs_code(name: str) -> YoyoError:
    return YoyoError(
        f"task {name} runs the code that the model writes, on this machine. Allow it with "
        "--run-code, best in a container."
    )


def _stated(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(".:")


def _quiet_harness() -> None:
    """Let the harness warn, but of each thing once: it loads the tasks anew for every model."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message, before = record.getMessage(), len(said)
        said.add(message)
        return len(said) > before

    logger = logging.getLogger("lm_eval")
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.addFilter(is_new)
        logger.addHandler(handler)
