"""What each tensor of a model class is made of in a checkpoint: `from_pretrained`'s own lookup.

transformers renames and converts what it reads (experts packed into one tensor, towers moved). Here
the names of a checkpoint go through the same rules once, and the answer is kept the other way
round: for each tensor of the model, the checkpoint's tensors that make it. Names only; data is
read when a tensor is converted.

    sources = Sources(config, names)
    sources.of["model.layers.0.mlp.experts.gate_up_proj"].names  # 256 tensors of the checkpoint
    sources.convert("model.layers.0.mlp.experts.gate_up_proj", checkpoint.read)
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mergekit_yoyo.model.config import meta_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from transformers.core_model_loading import WeightConverter


@dataclass(frozen=True)
class Source:
    """What one tensor of a model is made of.

    names: the checkpoint's tensors, by the pattern that each answers to. converter: what makes one
    of them; None: there is one name, and its tensor is taken as it is. first: the name under which
    the converter knows its first result.
    """

    first: str
    by_pattern: dict[str, list[str]]
    converter: "WeightConverter | None" = None

    @cached_property
    def names(self) -> list[str]:
        """All tensors of the checkpoint that it is made of."""
        return [name for names in self.by_pattern.values() for name in names]

    @property
    def joins(self) -> bool:
        """Whether tensors of different meaning are joined or cut (q, k and v in one).

        Stacks of experts are not meant: they are one tensor a kind.
        """
        if self.converter is None or any("*" in pattern for pattern in self.by_pattern):
            return False
        return len(self.converter.source_patterns) > 1 or len(self.converter.target_patterns) > 1


@dataclass
class Sources:
    """A checkpoint's tensor names, resolved for the model class of its config.

    of: by the name of the model's tensor. renamed: each name of the checkpoint as the class would
    call it, whether it has such a tensor or not.

    Raises:
        YoyoError: transformers does not have the model class.
    """

    config: "PretrainedConfig | Path"
    names: Iterable[str]
    of: dict[str, Source] = field(default_factory=dict, init=False)
    renamed: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        self.names = frozenset(self.names)
        self.model = meta_model(self.config)
        self.model.tie_weights()
        transforms = get_model_conversion_mapping(self.model)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        by_pattern = {p: c for c in converters for p in c.source_patterns}
        state, prefix = self._state, self.model.base_model_prefix
        for name in sorted(self.names, key=dot_natural_key):
            new, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if new not in state and name in state:
                new, pattern = rename_source_key(name, [], [], prefix, state)
            self.renamed[name] = new
            if new not in state:
                continue
            converter = None if pattern is None else by_pattern[pattern]
            for target in [new] if converter is None else _targets(new, converter.target_patterns):
                source = self.of.setdefault(target, Source(new, {}, converter))
                source.by_pattern.setdefault(pattern or name, []).append(name)
        for target, source in list(self.of.items()):
            if not _is_whole(source):
                del self.of[target]

    @cached_property
    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.model.state_dict(keep_vars=True)
        return state

    def lacks(self, target: str) -> bool:
        """Whether the model class has a tensor of this name and nothing in the checkpoint is it.

        A tensor that shares its data with one that is there (a tied head) is not lacking.
        """
        if target not in self._state or target in self.of:
            return False
        return not self.tied_to(target) & self.of.keys()

    def tied_to(self, target: str) -> set[str]:
        """The other names of the model's tensor `target`, which share its data."""
        if target not in self._state:
            return set()
        return self._ties[id(self._state[target])] - {target}

    @cached_property
    def _ties(self) -> dict[int, set[str]]:
        ties: dict[int, set[str]] = {}
        for name, tensor in self._state.items():
            ties.setdefault(id(tensor), set()).add(name)
        return ties

    def convert(self, target: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The model's tensor `target`, made of the checkpoint's as transformers makes it.

        Args:
            read: gives a tensor of the checkpoint by its name.
        """
        source = self.of[target]
        if source.converter is None:
            return read(source.names[0])
        converter = deepcopy(source.converter)
        for pattern, names in source.by_pattern.items():
            for name in names:
                converter.add_tensor(source.first, name, pattern, _later(read, name))
        made = converter.convert(source.first, model=self.model, config=self.model.config)
        tensor = made[target]
        result: torch.Tensor = tensor[0] if isinstance(tensor, list) else tensor
        return result


def _later(read: Callable[[str], torch.Tensor], name: str) -> Callable[[], torch.Tensor]:
    return lambda: read(name)


def _targets(first: str, patterns: list[str]) -> list[str]:
    """All results of a converter that calls its first one `first`."""
    if patterns[0] not in first:
        return [first]
    before, _, after = first.partition(patterns[0])
    return [before + pattern + after for pattern in patterns]


def _is_whole(source: Source) -> bool:
    """Whether all that a converter needs is there, equally many of each."""
    if source.converter is None:
        return True
    counts = {len(source.by_pattern.get(p, ())) for p in source.converter.source_patterns}
    return len(counts) == 1 and counts != {0}
