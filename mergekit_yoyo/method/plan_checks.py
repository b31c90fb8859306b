"""What is refused while mergekit plans a merge, before a tensor is read.

mergekit asks a method to validate the ids of its inputs (`check_model_files`); what depends on the
rest of a task is asked by our hook in mergekit's planner (`check_task`), and where a merge is run
without a planner, by the merge of the first tensor.
"""

import logging
import re
from collections.abc import Hashable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

from mergekit.common import ModelReference

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.method.idle_options import idle_options
from mergekit_yoyo.method.module_kind import prepare_kinds
from mergekit_yoyo.method.refusal import MergeError, refusals
from mergekit_yoyo.model.checkpoint import TensorInfo, read_raw_header
from mergekit_yoyo.outside import read_json
from mergekit_yoyo.planning import Reader, gathered_weights, opened_reader
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


_unquantized: WeakSet[Reader] = WeakSet()  # those that were looked at


def check_model_files(input_ids: Sequence[Hashable]) -> None:
    """Refuse models whose files hold quantized weights. Each is looked at once, headers only.

    Raises YoyoError, naming the model and a tensor.
    """
    for model in input_ids:
        if isinstance(model, ModelReference):
            reader = opened_reader(model)
            if reader is None:  # mergekit-pytorch merges single files
                found = _quantized_tensor(Path(model.model.path).resolve())
            elif reader in _unquantized:
                continue
            else:
                found = _quantized_input(reader)
            if found:
                raise YoyoError(
                    f"{model}: its weights are quantized ({found}). Their scales are separate "
                    "tensors, which a merge would drop: dequantize the model first."
                )
            if reader is not None:
                _unquantized.add(reader)


def _quantized_input(reader: Reader) -> str | None:
    """What says that the weights of an input are quantized: its config, a header, or a name."""
    folder = Path(reader.index.base_path).resolve()
    config = folder / "config.json"
    settings = read_json(config) if config.is_file() else {}
    if quantization := settings.get("quantization_config"):
        known = isinstance(quantization, dict) and quantization.get("quant_method")
        return f"quantization_config: {known or 'unknown method'}"
    files = sorted(folder / file for file in set(reader.names.values()))
    found = next(filter(None, map(_quantized_tensor, files)), None)
    return found or next(filter(QUANTIZED_NAME.search, reader.names), None)


def _quantized_tensor(file: Path) -> str | None:
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    return _quantized_in(file, file.stat().st_mtime_ns)


@cache
def _quantized_in(file: Path, changed: int) -> str | None:
    """The first quantized tensor in the header of a file, given with its whole path and time."""
    return next(
        (
            f"{name} is {dtype}"
            for name, dtype, _ in read_raw_header(file)
            if dtype.startswith(("F8", "F4", "F6")) or QUANTIZED_NAME.search(name)
        ),
        None,
    )


def check_task(task: Any, yaml: str) -> None:
    """Refuse a task of a plan, if mergekit would build its tensor from the wrong inputs.

    Raises MergeError for a tensor that would get fewer models than its slice has, or none with a
    weight above 0, for `center: anchor` or `sign_alignment: base` where the base is missing, for
    recall where the model class cannot be built, and for a record that cannot be written. Says
    which options have no effect.
    """
    check_all_models_gathered(task)
    _check_weights(task)
    _check_anchor(task)
    _check_signs(task)
    _check_model_class(task)
    _plan_record(task, yaml)
    for sentence in idle_options(task, _inputs_of(task)):
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


def _check_weights(task: Any) -> None:
    weights = [task.input_parameters[model]["weight"] for model in task.model_order]
    if not any(weights):
        raise MergeError(
            f"{task.output_weight.name}: all its models have weight 0; give one of them more."
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


def _check_signs(task: Any) -> None:
    wanted = task.parameters["sign_alignment"] == "base" and len(task.model_order) > 1
    if wanted and task.base_model not in task.model_order:
        raise MergeError(
            f"{task.output_weight.name}: sign_alignment: base needs base_model among the sources; "
            "set it, or take sign_alignment: first."
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


def _inputs_of(task: Any) -> Iterator[TensorInfo]:
    """What the headers say of a task's inputs, those that are checkpoints on disk."""
    for model, weight in (gathered_weights(task) or {}).items():
        reader = opened_reader(model)
        info = None if reader is None else reader.loads(weight)[1]
        if info is not None:
            yield info


def _has_weight(task: Any, model: ModelReference) -> bool:
    weights, reader = gathered_weights(task), opened_reader(model)
    if weights is None or reader is None:
        return True  # not a checkpoint on disk: the merge itself will tell
    weight = weights[model]
    names = [weight.name, *(weight.aliases or ()), *(weight.tied_names or ())]
    return any(name in reader.names for name in names)
