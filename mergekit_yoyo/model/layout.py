"""From transformers 5's model layout back to the layout of the original checkpoints.

transformers converts many checkpoints as it loads them (experts packed into one tensor, modules
renamed) and owns the registry of these conversions. Here that registry runs in reverse, one
conversion group at a time: only the tensors that depend on each other are in memory together.

    from mergekit_yoyo.model.layout import plan_layout
    from mergekit_yoyo.model.checkpoint import Checkpoint

    checkpoint = Checkpoint(folder)                    # headers only
    plan = plan_layout(folder, checkpoint.tensors)     # names, shapes and dtypes; no data is read
    if plan.changed:
        for name, tensor in plan.convert(checkpoint.read):
            ...                                        # `tensor` is yours; keep it or drop it

Names that the model's own layout does not have (the checkpoint is original already, or carries
extra tensors) pass through as they are, so converting twice changes nothing. Whether the outcome
is what a given donor has is another question: see `donor_check`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.model.config import meta_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Group:
    """Tensors that convert together: names in the model layout, and what they become."""

    sources: tuple[str, ...]
    targets: dict[str, TensorInfo]


@dataclass(frozen=True)
class LayoutPlan:
    """How a checkpoint becomes its original layout; made by `plan_layout`."""

    model: "PreTrainedModel"
    groups: list[Group]

    @cached_property
    def targets(self) -> dict[str, TensorInfo]:
        """Every tensor of the original layout."""
        return {name: info for group in self.groups for name, info in group.targets.items()}

    @cached_property
    def changed(self) -> list[Group]:
        """The groups that do not stay as they are; empty if the checkpoint is original already."""
        return [group for group in self.groups if tuple(group.targets) != group.sources]

    def as_is(self, tensors: Mapping[str, TensorInfo]) -> "LayoutPlan":
        """The plan that leaves each of `tensors` as it is, for a donor that is packed itself."""
        return LayoutPlan(self.model, [Group((name,), {name: tensors[name]}) for name in tensors])

    def convert(self, read: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of the original layout, one group after the other.

        Args:
            read: gives the tensor of a name in the model layout; called once for each.
        """
        for group in self.groups:
            tensors = {name: read(name) for name in group.sources}
            if tuple(group.targets) != group.sources:
                tensors = _revert(self.model, tensors)
            while tensors:  # popped, so that a consumer's copy need not live beside ours
                yield tensors.popitem()


def plan_layout(
    config: "PretrainedConfig | Path",
    tensors: Mapping[str, TensorInfo],
    stored: Iterable[str] = (),
) -> LayoutPlan:
    """Plan the conversion of a checkpoint into its original layout, without reading its data.

    Args:
        config: the model's configuration, or its folder.
        tensors: the checkpoint's tensors by name (`Checkpoint.tensors`).
        stored: names of a checkpoint in the original layout. Whether a prefix that transformers
            strips as it loads (`vision_tower.vision_model.`) was there, only they can tell.

    Raises:
        YoyoError: transformers does not know the architecture, or cannot revert a tensor.
    """
    model = meta_model(config, stored)
    own = set(model.state_dict())
    groups: dict[str, list[str]] = {}
    key_of = _group_key(model)
    for name in tensors:
        groups.setdefault(key_of(name) if name in own else name, []).append(name)

    planned = []
    for names in groups.values():
        infos = {name: tensors[name] for name in names}
        if names[0] in own:
            meta = {
                name: torch.empty(info.shape, dtype=info.dtype, device="meta")
                for name, info in infos.items()
            }
            reverted = _revert(model, meta)
            infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in reverted.items()}
        planned.append(Group(tuple(names), infos))
    return LayoutPlan(model, planned)


def _revert(model: "PreTrainedModel", tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    if not model._weight_conversions:
        return tensors
    names = ", ".join(tensors)
    try:
        reverted: dict[str, torch.Tensor] = revert_weight_conversion(model, tensors)
    except Exception as error:
        raise YoyoError(f"{names}: transformers cannot revert its conversion: {error}") from error
    return reverted


def _group_key(model: "PreTrainedModel") -> Callable[[str], str]:
    """A function that gives the same key to names that one reversed converter takes together."""
    from transformers.core_model_loading import WeightConverter, apply_converters

    converters = [
        conversion.reverse_transform()
        for conversion in reversed(model._weight_conversions)
        if isinstance(conversion, WeightConverter)
    ]

    def key(name: str) -> str:
        target, pattern = apply_converters(name, converters)
        return name if pattern is None else f"-> {target}"

    return key
