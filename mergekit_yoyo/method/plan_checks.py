"""What is refused while mergekit plans a merge, before a tensor is read.

mergekit asks a method to validate the ids of its inputs (`check_model_files`); what depends on the
rest of a task is asked by our hook in mergekit's planner (`check_task`), and where a merge is run
without a planner, by the merge of the first tensor.
"""

import logging
import re
from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mergekit.common import ModelReference
from safetensors import safe_open

from mergekit_yoyo.algorithm.consensuses import without_effect
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.method.module_kind import prepare_kinds
from mergekit_yoyo.method.refusal import MergeError, refusals
from mergekit_yoyo.outside import read_json
from mergekit_yoyo.planning import gathered_weights
from mergekit_yoyo.record import recorder

LOG = logging.getLogger(__name__)

# the tensors that hold scales and codes beside or instead of a quantized weight
QUANTIZED_NAME = re.compile(
    r"\.(qweight|qzeros|g_idx|absmax|quant_map|quant_state\..+|SCB|weight_packed"
    r"|weight_scale(_inv|_2)?)$|_(blocks|scales|scale_inv)$"
)
TWO_STAGES = (
    "Give the first and the last slice equally many sources, or merge whole models first and "
    "arrange layers in a second stage with mergekit-multi."
)


# models that were looked at, with the index of files that they had then
_unquantized: dict[ModelReference, Any] = {}


def check_model_files(input_ids: Sequence[Hashable]) -> None:
    """Refuse models whose files hold quantized weights. Each is looked at once, headers only.

    Raises YoyoError, naming the model and a tensor.
    """
    from mergekit.io.tasks import LoaderCache

    for model in input_ids:
        if isinstance(model, ModelReference):
            loader = LoaderCache().loaders.get(model)
            if loader:
                if _unquantized.get(model) is loader.index:
                    continue
                folder = Path(loader.index.base_path)
                files = sorted({folder / file for file in loader.index.tensor_paths.values()})
                found = _quantization_config(folder / "config.json")
            else:  # mergekit-pytorch merges single files
                files, found = [Path(model.model.path)], None
            found = found or next(filter(None, map(_quantized_tensor, files)), None)
            if loader and not found:  # other files than safetensors: names only
                found = next(filter(QUANTIZED_NAME.search, loader.index.tensor_paths), None)
            if found:
                raise YoyoError(
                    f"{model}: its weights are quantized ({found}). Their scales are separate "
                    "tensors, which a merge would drop: dequantize the model first."
                )
            if loader:
                _unquantized[model] = loader.index


def _quantization_config(config: Path) -> str | None:
    settings = read_json(config) if config.is_file() else {}
    if quantization := settings.get("quantization_config"):
        known = isinstance(quantization, dict) and quantization.get("quant_method")
        return f"quantization_config: {known or 'unknown method'}"
    return None


def _quantized_tensor(file: Path) -> str | None:
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    return _quantized_in(file, file.stat().st_mtime_ns)


@cache
def _quantized_in(file: Path, changed: int) -> str | None:
    """The first quantized tensor in the header of a file as it was at a time."""
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            dtype = tensors.get_slice(name).get_dtype()
            if dtype.startswith(("F8", "F4", "F6")) or QUANTIZED_NAME.search(name):
                return f"{name} is {dtype}"
    return None


def check_task(task: Any, yaml: str) -> None:
    """Refuse a task of a plan, if mergekit would build its tensor from the wrong inputs.

    Raises MergeError for a tensor that would get fewer models than its slice has, for `center:
    anchor` where the anchor is missing, for recall where the model class cannot be built, and for a
    record that cannot be written. Says which options have no effect.
    """
    check_all_models_gathered(task)
    _check_anchor(task)
    _check_model_class(task)
    _plan_record(task, yaml)
    for sentence in without_effect(dict(task.parameters.items())):
        _warn(sentence)


@cache
def _warn(sentence: str) -> None:
    """In mergekit's log, once."""
    LOG.warning("%s", sentence)


def check_all_models_gathered(task: Any) -> None:
    """mergekit counts the inputs of head and final norm by the first slice, not by the last."""
    gathered = gathered_weights(task)
    if gathered is None or len(gathered) >= len(task.model_order):
        return
    raise MergeError(
        f"{task.output_weight.name}: the last slice has {len(task.model_order)} sources and the "
        f"first one {len(gathered)}; mergekit would build this tensor from only "
        f"{', '.join(str(model) for model in gathered)}. {TWO_STAGES}"
    )


def _check_anchor(task: Any) -> None:
    if task.parameters["center"] != "anchor" or len(task.model_order) < 2:
        return
    name, base = task.output_weight.name, task.base_model
    if base is None:
        raise MergeError(f"{name}: center: anchor needs base_model, which is the anchor. Set it.")
    if base not in task.model_order:
        raise MergeError(
            f"{name}: center: anchor needs {base} among the sources of its slice; "
            f"got {', '.join(str(model) for model in task.model_order)}. Add it to the slice, "
            "or choose another center for these layers."
        )
    if task.output_weight.optional and not _has_weight(task, base):
        raise MergeError(
            f"{name}: the anchor {base} lacks this optional tensor. Choose another center for it "
            f"with a filter: {{filter: {name}, value: geometric_median}}."
        )


def _check_model_class(task: Any) -> None:
    if task.parameters["consensus"] == "recall":
        with refusals():
            prepare_kinds(task.model_order[0])


def _plan_record(task: Any, yaml: str) -> None:
    if report := task.parameters["report"]:
        with refusals():
            recorder.plan(
                report,
                task.output_weight.name,
                [str(model) for model in task.model_order],
                None if task.base_model is None else str(task.base_model),
                optional=task.output_weight.optional,
                yaml=yaml,
            )


def _has_weight(task: Any, model: ModelReference) -> bool:
    from mergekit.io.tasks import LoaderCache

    weights, loader = gathered_weights(task), LoaderCache().loaders.get(model)
    if weights is None or loader is None:
        return True  # not a checkpoint on disk: the merge itself will tell
    weight = weights[model]
    names = [weight.name, *(weight.aliases or ()), *(weight.tied_names or ())]
    return any(name in loader.index.tensor_paths for name in names)
