"""Writing an mlx model: mlx-lm's own shards and index, told of as they grow; and its config."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import mlx.nn as nn
from mlx_lm.utils import save_config, save_model

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.bridge import Bridge
from mergekit_yoyo.mlx.plan import ExportPlan
from mergekit_yoyo.progress import Progress

_SECONDS = 0.5  # between two looks at what is written


def save(
    model: nn.Module, bridge: Bridge, plan: ExportPlan, folder: Path, progress: Progress
) -> None:
    """Write weights and config of `model`, whose arrays are given away.

    Args:
        model: cast and quantized by `plan`, lazily: mlx computes each shard as it is written.
        bridge: whose config is written; that of a tower only if it was kept.
        plan: what each module got.
        folder: that is there.
        progress: told of the bytes that are written.

    Raises:
        YoyoError: mlx could not write, as on a full disk.
    """
    step = "Quantizing and writing" if plan.recipe.quantizes else "Writing"
    progress.begin(step, total=plan.bytes, unit="bytes")
    try:
        with _watched(folder, progress):
            save_model(folder, model, donate_model=True)
    except RuntimeError as error:
        if not str(error).startswith("[write]"):
            raise
        raise YoyoError(
            f"mlx could not write the weights ({error}). Is the disk full? Nothing was written."
        ) from None
    config = _final(bridge.config, plan)
    save_config(config, folder / "config.json", keep_vision_config=bridge.pictures)


@contextmanager
def _watched(folder: Path, progress: Progress) -> Iterator[None]:
    """Tell `progress` how many bytes of weights stand in `folder`, for mlx-lm does not."""
    done = Event()

    def watch() -> None:
        told, last = 0, False
        while not last:
            last = done.wait(_SECONDS)
            size = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
            progress.advance(size - told)
            told = size

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _final(config: dict[str, Any], plan: ExportPlan) -> dict[str, Any]:
    """config.json as mlx-lm reads it, in the dtype that was written."""
    config = dict(config)
    if plan.recipe.dtype:
        for key in {"dtype", "torch_dtype"} & config.keys():
            config[key] = plan.recipe.dtype
    quantization = plan.quantization()
    if quantization:
        config["quantization"] = quantization
    return config
