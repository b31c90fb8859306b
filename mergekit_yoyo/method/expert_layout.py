"""Which packed tensors hold experts that checkpoints store apart: transformers' mapping decides.

transformers 5 stacks the experts of most families when it loads them, gate and up concatenated;
mergekit hands the packed tensors over. Families whose checkpoints
are packed by design (gpt-oss, Llama 4) have no such conversion and merge packed.
"""

from functools import cache

from mergekit.common import ModelReference
from mergekit.merge_methods.base import TensorGroup

from mergekit_yoyo.algorithm.options import Experts
from mergekit_yoyo.algorithm.packing import WHOLE, Packing
from mergekit_yoyo.planning import opened_reader


def packing_of(group: TensorGroup, experts: Experts) -> Packing | Experts:
    """How the group's tensor is to be taken apart.

    `auto` looks up the family of the first model; a direct call has no model to ask and gets
    `auto` back. The name decides within the family, never how the file at hand is stored.
    `separate` in a YAML is meant for the experts only, though mergekit sends it with every tensor.
    """
    first, name = group.entries[0].id, group.metadata.name
    if not isinstance(first, ModelReference) or name is None:
        return experts
    if experts == "separate":
        return experts if "experts" in name and group.tensors[0].ndim >= 3 else WHOLE
    if experts == "packed":
        return WHOLE
    reader = opened_reader(first)
    for model_type in () if reader is None else reader.model_types:
        for target, packing in _packed_targets(model_type):
            if target in name:
                return packing
    return WHOLE


@cache
def _packed_targets(model_type: str) -> tuple[tuple[str, Packing], ...]:
    """The packed names of a family (parts of tensor names), and how each was packed."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.core_model_loading import Concatenate, WeightConverter

    found = []
    for transform in get_checkpoint_conversion_mapping(model_type) or []:
        if not isinstance(transform, WeightConverter):
            continue
        sources = transform.source_patterns
        stacked = all("experts.*." in source for source in sources)
        joined = stacked or any(
            isinstance(op, Concatenate) and op.dim == 1 for op in transform.operations
        )
        packing = Packing(stacked, len(sources) if joined else 1)
        if packing != WHOLE:
            found += [(target, packing) for target in transform.target_patterns]
    return tuple(found)
