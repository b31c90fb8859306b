"""From a checkpoint and its bridge to an mlx model, lazily: no weight is read before it is used."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish.layout import LayoutPlan, meta_model, plan_layout
from mergekit_yoyo.finish.weights import Checkpoint, write_checkpoint
from mergekit_yoyo.mlx.bridge import Bridge


def skeleton(bridge: Bridge, dtype: str | None = None) -> nn.Module:
    """The mlx model without a checkpoint: shapes only, its arrays are never computed.

    Args:
        bridge: what the model is built from.
        dtype: of its floating point arrays: those of the checkpoint's config.

    Raises:
        YoyoError: mlx-lm cannot build the model from this config.
    """
    try:
        model: nn.Module = bridge.model_class(bridge.args)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _not_built(bridge, error) from None
    if dtype in ("float16", "bfloat16", "float32"):
        model.set_dtype(getattr(mx, dtype))
    return model


def layout_changes(checkpoint: Checkpoint, declared: Any) -> LayoutPlan | None:
    """How a checkpoint in transformers' model layout (experts packed) becomes the original one,
    which is what mlx-lm reads; None if it is original already, or unknown to transformers."""
    if declared is None:
        return None
    plan = plan_layout(declared, checkpoint.tensors)
    return plan if plan.changed else None


def write_original_layout(checkpoint: Checkpoint, plan: LayoutPlan, folder: Path) -> None:
    """Unpack a checkpoint into `folder`, tensor by tensor, with its config."""
    write_checkpoint(folder, plan.targets, plan.convert(checkpoint.read))
    config = (checkpoint.folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(config)


def load_lazily(folder: Path, bridge: Bridge, declared: Any) -> nn.Module:
    """The mlx model of a checkpoint in original layout, its arrays yet to be read.

    Raises:
        YoyoError: mlx-lm cannot build the model, or its tensors do not fit the checkpoint's.
    """
    transposed = _transposed_experts(folder, declared)

    class Bridged(bridge.model_class):  # type: ignore[misc, name-defined]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            for name in transposed & weights.keys():
                weights[f"{name}.weight"] = weights.pop(name).swapaxes(-1, -2)
            parent = getattr(super(), "sanitize", None)
            return parent(weights) if parent else weights

    try:
        model, _ = load_model(
            folder,
            lazy=True,
            model_config=bridge.config,
            get_model_classes=lambda config: (Bridged, bridge.args_class),
        )
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _not_built(bridge, error) from None
    return model


def _transposed_experts(folder: Path, declared: Any) -> set[str]:
    """Expert tensors that transformers stores as (experts, inputs, outputs), where mlx-lm has the
    outputs first. The modeling class declares it (`is_transposed`)."""
    packed = {
        name
        for name, info in Checkpoint(folder).tensors.items()
        if len(info.shape) == 3 and name.endswith("_proj")
    }
    if not packed or declared is None:
        return set()
    flipped = {
        f"{path}.{name}"
        for path, module in meta_model(declared).named_modules()
        if getattr(module, "is_transposed", False)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }
    return packed & flipped


def _not_built(bridge: Bridge, error: Exception) -> YoyoError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = " ".join(lines[:3]) + (" ..." if len(lines) > 3 else "")
    doubts = "".join(f"; {doubt}" for doubt in bridge.doubts)
    return YoyoError(
        f"mlx-lm's {bridge.model_class.__module__.rpartition('.')[2]} model does not take this "
        f"checkpoint: {reason}{doubts}."
    )
