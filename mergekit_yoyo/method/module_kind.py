"""What a tensor is in the network, which recall has to know: the model class decides.

The model is built without storage, as mergekit itself does to find tied weights, once per config.
"""

from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from mergekit.common import ModelReference
from mergekit.merge_methods.base import TensorGroup

from mergekit_yoyo.algorithm.options import Experts, TensorKind
from mergekit_yoyo.algorithm.packing import WHOLE, Packing
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.names import any_index
from mergekit_yoyo.planning import Reader, opened_reader

_STACKED = Packing(stacked=True)


def kind_of(group: TensorGroup, packing: Packing | Experts) -> tuple[TensorKind, Packing | Experts]:
    """The kind of the group's tensor, and its packing: recall takes packed experts apart always.

    A merge of files or of bare tensors has no model class: `auto`, and mergekit's metadata says
    what is an embedding.

    Raises YoyoError if the model class cannot be built.
    """
    first, name = group.entries[0].id, group.metadata.name
    reader = opened_reader(first)
    kinds = {} if reader is None else _kinds(reader)
    if not kinds or name is None:
        indexed = group.metadata.vocabulary_axis is not None
        return ("embedding" if indexed else "auto"), packing
    # a merge may have more layers than its inputs; a name that transformers does not use is that of
    # a layer stored apart, which is a linear one or a vector by its shape
    kind, stacked = kinds.get(any_index(name), ("auto", False))
    return kind, _STACKED if stacked and packing == WHOLE else packing


def prepare_kinds(model: ModelReference) -> None:
    """Build the model class while mergekit plans, once for all of its threads.

    Raises YoyoError if the model class cannot be built.
    """
    reader = opened_reader(model)
    if reader is not None:  # else it is asked about later
        _kinds(reader)


_known: WeakKeyDictionary[Reader, dict[str, tuple[TensorKind, bool]]] = WeakKeyDictionary()


def _kinds(reader: Reader) -> dict[str, tuple[TensorKind, bool]]:
    """TensorKind of each parameter, and whether it stacks experts; names without layer numbers."""
    if reader not in _known:
        _known[reader] = _kinds_in(_built(reader))
    return _known[reader]


def _built(reader: Reader) -> torch.nn.Module:
    """The model class of an input, without data."""
    from mergekit.common import get_auto_cls
    from transformers.initialization import no_init_weights

    try:
        with torch.device("meta"), no_init_weights():
            built: Any = get_auto_cls(reader.config.architectures[0]).from_config(
                reader.config, trust_remote_code=reader.trusts
            )
        built.tie_weights()
    except Exception as error:
        raise YoyoError(
            f"{reader.model}: consensus: recall must know which tensors are embeddings and which "
            f"are linear layers, and the model class cannot be built ({error})."
        ) from error
    return cast(torch.nn.Module, built)


def _kinds_in(built: torch.nn.Module) -> dict[str, tuple[TensorKind, bool]]:
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
