"""What a tensor is in the network, which recall has to know: the model class decides.

The model is built without storage, as mergekit itself does to find tied weights, once per config.
"""

from functools import cache
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.merge_methods.base import TensorGroup

from mergekit_yoyo.algorithm.options import Experts, TensorKind
from mergekit_yoyo.algorithm.packing import WHOLE, Packing
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.names import any_index

_STACKED = Packing(stacked=True)


def kind_of(group: TensorGroup, packing: Packing | Experts) -> tuple[TensorKind, Packing | Experts]:
    """The kind of the group's tensor, and its packing: recall takes packed experts apart always.

    A merge of files or of bare tensors has no model class: `auto`, and mergekit's metadata says
    what is an embedding.

    Raises YoyoError if the model class cannot be built.
    """
    first, name = group.entries[0].id, group.metadata.name
    kinds = _kinds(first) if isinstance(first, ModelReference) else {}
    if not kinds or name is None:
        indexed = group.metadata.vocabulary_axis is not None
        return ("embedding" if indexed else "auto"), packing
    # a merge may have more layers than its inputs; a name that transformers does not use is that of
    # a layer stored apart, which is a linear one or a vector by its shape
    kind, stacked = kinds.get(any_index(name), ("auto", False))
    return kind, _STACKED if stacked and packing == WHOLE else packing


def prepare_kinds(model: ModelReference) -> None:
    """Build the model class while mergekit plans: its GPU threads do not know trust_remote_code.

    Raises YoyoError if the model class cannot be built.
    """
    from mergekit.io.tasks import LoaderCache

    if model in LoaderCache.loaders:  # else it is asked about later
        _kinds(model)


@cache
def _kinds(model: ModelReference) -> dict[str, tuple[TensorKind, bool]]:
    """TensorKind of each parameter, and whether it stacks experts; names without layer numbers."""
    from mergekit.common import get_auto_cls
    from mergekit.io.tasks import LoaderCache
    from transformers.initialization import no_init_weights

    loaders = LoaderCache()
    if model not in loaders.loaders:  # a file of raw tensors
        return {}
    trust = loaders.trust_remote_code
    try:
        config = model.config(trust_remote_code=trust)
        with torch.device("meta"), no_init_weights():
            built = get_auto_cls(config.architectures[0]).from_config(
                config, trust_remote_code=trust
            )
        built.tie_weights()
    except Exception as error:
        raise YoyoError(
            f"{model}: consensus: recall must know which tensors are embeddings and which are "
            f"linear layers, and the model class cannot be built ({error})."
        ) from error
    tables = {
        id(module.weight) for module in built.modules() if isinstance(module, torch.nn.Embedding)
    }
    return {
        any_index(f"{path}.{name}" if path else name): _kind(module, name, parameter, tables)
        for path, module in built.named_modules(remove_duplicate=False)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    }


def _kind(module: Any, name: str, parameter: Any, tables: set[int]) -> tuple[TensorKind, bool]:
    from transformers.pytorch_utils import Conv1D

    experts = hasattr(module, "is_transposed")  # how transformers marks modules of packed experts
    if id(parameter) in tables:  # a tied head is the table
        return "embedding", False
    if parameter.ndim < 2 or "bias" in name:
        return "vector", False
    if isinstance(module, Conv1D) or (experts and module.is_transposed):
        return "transposed", experts
    return "linear", experts and parameter.ndim > 2
