"""The weights, read once: each tensor as mergekit would hand it to the method, and what it weighs.

The tasks are mergekit's own, so that casts, slices, packed experts and vocabularies are what the
merge would see, and the lines are what its record would say. One tensor is in memory at a time.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import torch
from mergekit.graph import Task
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods.base import (
    PerInputValues,
    TensorEntry,
    TensorGroup,
    TensorMetadata,
)
from mergekit.merge_methods.buffers import copy_non_floating_buffer
from mergekit.merge_methods.dtype import align_dtype
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.tokenizer import BuildTokenizer

from mergekit_yoyo.inspection.planning import MergePlan
from mergekit_yoyo.method import METHOD
from mergekit_yoyo.record.schema import TensorLine

DEFAULTS = {spec.name: spec.default for spec in METHOD.spec.shared_parameters}


class Look(NamedTuple):
    """What was seen of one tensor. line: null if it is not merged (a single input, a buffer).

    same: pairs of models whose tensors are equal to the bit. fault: why it cannot be merged.
    """

    name: str
    line: TensorLine | None = None
    same: tuple[tuple[str, str], ...] = ()
    fault: str | None = None


def look_at_weights(plan: MergePlan) -> Iterator[Look]:
    """Read the tensors of the merge one after the other; yields what was seen of each."""
    tokenizers: dict[Task, Any] = {}
    for task in plan.tasks:
        name = task.output_weight.name
        try:
            yield _look(task, _value(task.gather_tensors, tokenizers))
        except Exception as wrong:  # of any kind, as in the merge: damaged files, shapes, NaN
            yield Look(name, fault=str(wrong) if name in str(wrong) else f"{name}: {wrong}")
    LoaderCache().flush_all()


def _look(task: ExecuteMergeMethodTask, tensors: dict[Any, torch.Tensor]) -> Look:
    """The group that `ExecuteMergeMethodTask` would merge, described instead."""
    name = task.output_weight.name
    entries = tuple(
        TensorEntry(id=model, tensor=tensors[model], is_base=model == task.base_model)
        for model in task.model_order
        if model in tensors
    )
    group = TensorGroup(entries, TensorMetadata.from_weight_info(task.output_weight))
    passes = task.output_weight.optional and len(entries) < min(2, len(task.model_order))
    if passes or copy_non_floating_buffer(group.tensors, name) is not None:
        return Look(name)
    group.validate_tensors()
    group = align_dtype(group)
    ours = task.method_name == METHOD.spec.name
    line = METHOD.describe_group(group, **(_bound(task, group) if ours else DEFAULTS))
    same = tuple(
        (str(a.id), str(b.id))
        for a, b in combinations(group.entries, 2)
        if torch.equal(a.tensor, b.tensor)
    )
    return Look(name, line, same)


def _bound(task: ExecuteMergeMethodTask, group: TensorGroup) -> dict[str, Any]:
    """The parameters of our method, those of each input bound to it."""
    parameters = dict(task.parameters.items())
    for spec in METHOD.spec.input_parameters:
        values = [(e.id, task.input_parameters[e.id][spec.name]) for e in group.entries]
        parameters[spec.name] = PerInputValues(values)
    return parameters


def _value(task: Task, tokenizers: dict[Task, Any]) -> Any:
    """What a task gives, with all it depends on. Tokenizers are built once."""
    arguments = {key: _value(part, tokenizers) for key, part in task.arguments().items()}
    if not isinstance(task, BuildTokenizer):
        return task.execute(**arguments)
    if task not in tokenizers:
        tokenizers[task] = task.execute()
    return tokenizers[task]
