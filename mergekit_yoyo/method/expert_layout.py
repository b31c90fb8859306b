"""Which packed tensors hold experts that checkpoints store apart: transformers' mapping decides.

transformers 5 packs the experts of most families when it loads them (`MergeModulelist`, then
`Concatenate` of gate and up); mergekit hands the packed tensors over. Families whose checkpoints
are packed by design (gpt-oss, Llama 4) have no such conversion and merge packed.
"""

from functools import cache
from typing import Any

from mergekit.common import ModelReference
from mergekit.merge_methods.base import TensorGroup

from mergekit_yoyo.algorithm.options import Experts
from mergekit_yoyo.algorithm.packing import WHOLE, Packing


def packing_of(group: TensorGroup, experts: Experts) -> Packing | Experts:
    """How the group's tensor is to be taken apart.

    `auto` looks up the family of the first model; a direct call has no model to ask and gets
    `auto` back. The name decides within the family, never how the file at hand is stored.
    """
    first = group.entries[0].id
    if experts != "auto" or not isinstance(first, ModelReference) or group.metadata.name is None:
        return experts
    for model_type in _model_types(first):
        for target, packing in _packed_targets(model_type):
            if target in group.metadata.name:
                return packing
    return WHOLE


@cache
def _model_types(model: ModelReference) -> tuple[str, ...]:
    from mergekit.io.tasks import LoaderCache

    try:
        config = model.config(trust_remote_code=LoaderCache().trust_remote_code)
    except (OSError, ValueError):  # raw tensors without a config: no family, nothing packed
        return ()
    configs: list[Any] = [config, getattr(config, "text_config", None)]
    return tuple(c.model_type for c in configs if c is not None)


@cache
def _packed_targets(model_type: str) -> tuple[tuple[str, Packing], ...]:
    """The packed names of a family (parts of tensor names), and how each was packed."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

    found = []
    for transform in get_checkpoint_conversion_mapping(model_type) or []:
        if not isinstance(transform, WeightConverter):
            continue
        operations = transform.operations
        stacked = any(isinstance(op, MergeModulelist) and op.dim == 0 for op in operations)
        joined = any(isinstance(op, Concatenate) and op.dim == 1 for op in operations)
        packing = Packing(stacked, len(transform.source_patterns) if joined else 1)
        if packing != WHOLE:
            found += [(target, packing) for target in transform.target_patterns]
    return tuple(found)
