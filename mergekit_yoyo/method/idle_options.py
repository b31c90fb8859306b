"""Options of a merge that are set and do nothing."""

from collections.abc import Iterable
from typing import Any

from mergekit_yoyo.algorithm.consensuses import without_effect
from mergekit_yoyo.algorithm.precision import STEPS
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.planning import merged_dtype


def idle_options(task: Any, inputs: Iterable[TensorInfo]) -> list[str]:
    """Options that are set and that the merge of a tensor does not heed, a sentence each.

    task: of mergekit's plan, by our method. inputs: what headers say of its inputs, as far as they
    do; read only where it matters.
    """
    parameters = dict(task.parameters.items())
    said = without_effect(parameters)
    rule = parameters["rounding"]
    if rule != "nearest" and (known := list(inputs)):
        dtype = merged_dtype(task, known)
        if dtype not in STEPS:
            said.append(
                f"rounding: {rule} has no effect on tensors merged in "
                f"{str(dtype).removeprefix('torch.')}, as dtype: or the models have it; what "
                "out_dtype: makes of them mergekit rounds to nearest"
            )
    return said
