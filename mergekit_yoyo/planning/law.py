"""Nothing is lost: what becomes of each tensor of each input in a plan of mergekit.

The law: the tensors of the merge cover those of its inputs, up to conversions, renames, declared
ties, and layers that slices leave out. `account` states it for a plan that is made; the plan's
refusal, `inspect` and the repair all ask it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference

from mergekit_yoyo.planning.reading import Reader, gathered_weights

_NUMBER = re.compile(r"\.(\d+)\.")
_SHOWN = 3


@dataclass(frozen=True)
class Layers:
    """The layers of one of mergekit's modules in a plan.

    stems: what stands before the layer's number in tensor names. taken: the layers that go in, by
    model. counts: how many each model has. out: how many the merge has.
    """

    module: str
    stems: frozenset[str]
    taken: Mapping[ModelReference, frozenset[int]]
    counts: Mapping[ModelReference, int]
    out: int


@dataclass(frozen=True)
class Place:
    """A tensor of a layer: where in its name the layer's number stands."""

    layers: Layers
    index: int
    before: str
    after: str

    def at(self, index: int) -> str:
        """The tensor's name in another layer."""
        return f"{self.before}.{index}.{self.after}"


@dataclass(frozen=True)
class Lost:
    """A tensor of an input that no task of the plan reads. place: None outside of layers."""

    model: ModelReference
    name: str
    place: Place | None

    @property
    def trails(self) -> bool:
        """Whether it is of a layer behind the last: a block for multi-token prediction."""
        return self.place is not None and self.place.index >= self.place.layers.counts[self.model]


@dataclass
class Account:
    """What becomes of the tensors of the inputs.

    lost: what would not reach the merge. parameters: of each lost tensor; total: of the model.
    known: whether transformers' class has all that is lost.
    """

    lost: list[Lost] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)
    total: int = 0
    known: bool = True

    def __str__(self) -> str:
        """What is lost, layers and experts put together, largest first."""
        groups: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(lost.name for lost in self.lost):
            groups[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)].append(name)
        sizes = {
            pattern: sum(self.parameters.get(name, 0) for name in names)
            for pattern, names in groups.items()
        }
        shown = sorted(groups, key=lambda pattern: -sizes[pattern])
        words = [
            f"{pattern} ({len(groups[pattern])} tensors, {sizes[pattern]:,} parameters)"
            if len(groups[pattern]) > 1
            else f"{pattern} ({sizes[pattern]:,} parameters)"
            for pattern in shown[:_SHOWN]
        ]
        if len(shown) > _SHOWN:
            words.append(f"{len(shown) - _SHOWN} more kinds")
        count, size = sum(map(len, groups.values())), sum(sizes.values())
        share = f", {100 * size / self.total:.1f} % of the model" if self.total else ""
        return f"{count} tensors ({size:,} parameters{share}): {', '.join(words)}"


def account(tasks: Iterable[Any], layers: Sequence[Layers], readers: Sequence[Reader]) -> Account:
    """What becomes of each tensor of each input.

    Args:
        tasks: the merge tasks whose results the plan writes (`ExecuteMergeMethodTask`).
        layers: of each module, the layers that go in.
        readers: the inputs.
    """
    read: dict[ModelReference, set[str]] = {reader.model: set() for reader in readers}
    by_model = {reader.model: reader for reader in readers}
    for task in tasks:
        for model, weight in (gathered_weights(task) or {}).items():
            read[model].update(by_model[model].read_from(weight))

    @cache
    def arrive() -> set[str]:  # where all is read, no model class need be loaded for it
        return {by_model[m].renamed(name) for m, names in read.items() for name in names}

    result = Account()
    for reader in readers:
        for name in reader.names:
            if name in read[reader.model]:
                continue
            place = place_of(reader, name, layers)
            if place is not None and _cut(place, reader.model):
                continue
            if place is None and _arrives(reader, name, arrive()):
                continue
            result.lost.append(Lost(reader.model, name, place))
    if result.lost:
        _measure(result, by_model)
        result.known = all(by_model[lost.model].has(lost.name) for lost in result.lost)
    return result


def place_of(reader: Reader, name: str, layers: Sequence[Layers]) -> Place | None:
    """The layer that a tensor of a checkpoint belongs to, by its own name or its class's."""
    for spelled in (reader.renamed(name), name):
        found = _NUMBER.search(spelled)
        if found is None:
            continue
        for module in layers:
            if spelled[: found.start()] in module.stems and reader.model in module.counts:
                before, number, after = name.partition(found[0])
                if number:
                    return Place(module, int(found[1]), before, after)
    return None


def stems_of(weights: Iterable[WeightInfo]) -> frozenset[str]:
    """What stands before the layer's number in the names of a layer's weights."""
    found = (_NUMBER.search(weight.name) for weight in weights)
    return frozenset(match.string[: match.start()] for match in found if match)


def _cut(place: Place, model: ModelReference) -> bool:
    """Whether a tensor lies in a layer that the slices of the YAML leave out."""
    module = place.layers
    return place.index < module.counts[model] and place.index not in module.taken[model]


def _arrives(reader: Reader, name: str, arrive: set[str]) -> bool:
    """Whether a tensor arrives by its class's name, or the class says it is one that does."""
    new, sources = reader.renamed(name), reader.sources
    return new in arrive or (sources is not None and bool(sources.tied_to(new) & arrive))


def _measure(result: Account, readers: Mapping[ModelReference, Reader]) -> None:
    for lost in result.lost:
        info = readers[lost.model].info(lost.name)
        if info is not None:
            result.parameters[lost.name] = info.nbytes // info.dtype.itemsize
    reader = readers[result.lost[0].model]
    infos = [reader.info(name) for name in reader.names]
    result.total = sum(info.nbytes // info.dtype.itemsize for info in infos if info is not None)
