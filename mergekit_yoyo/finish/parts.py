"""What each part of a merge got of an option: the filters, gradients and slices of its YAML."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration, OutputSliceDefinition


@dataclass(frozen=True)
class Part:
    """The tensors that `where` tells in words, and the values there: one, or a gradient's."""

    where: str
    values: tuple[Any, ...]

    @property
    def shown(self) -> str:
        """The value, or a gradient over the layers as mergekit takes it: numbers run from one to
        the next, words change in steps, the last of them in the last layer alone."""
        words = [str(value) for value in self.values]
        if len(words) == 1 or all(isinstance(value, int | float) for value in self.values):
            return " → ".join(words)
        return f"{' → '.join(words[:-1])}, {words[-1]} in the last layer"


def parts_of(config: "MergeConfiguration", option: str, default: Any) -> list[Part]:
    """What each part of the merge got of `option`, in the order in which mergekit looks it up:
    the first part that a tensor belongs to counts.

    A slice goes before its module, a module before the merge; within one of them the first filter
    that fits counts. Where nothing fits, it is `default`.
    """
    return [
        Part(", ".join(filter(None, (names, place))) or "all", values)
        for place, settings in _scopes(config)
        for names, values in _settled([part.get(option) for part in settings if part], default)
    ]


def _scopes(config: "MergeConfiguration") -> Iterator[tuple[str, list[dict[str, Any] | None]]]:
    """Each part of the model with parameters of its own, and the parameters that hold there."""
    modules = config.modules or {"": config}
    for name, module in modules.items():
        own = module.parameters if name else None
        called = f"`{name}`" if len(modules) > 1 else ""
        slices = module.slices or []
        if not any(piece.parameters for piece in slices):
            yield called, [own, config.parameters]
            continue
        for place, piece in zip(_layers(slices), slices, strict=True):
            where = f"{place} of {called}" if called else place
            yield where, [piece.parameters, own, config.parameters]


def _layers(slices: "Sequence[OutputSliceDefinition]") -> list[str]:
    """The layers of the merge that each slice is; embeddings go with the first, the head with the
    last."""
    lengths = [
        piece.sources[0].layer_range[1] - piece.sources[0].layer_range[0] for piece in slices
    ]
    places = [
        f"layer {start}" if end - start == 1 else f"layers {start} to {end - 1}"
        for start, end in pairwise(accumulate(lengths, initial=0))
    ]
    if len(places) > 1:
        places[0] += " and before"
        places[-1] += " and after"
    return places


def _settled(settings: list[Any], default: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(tensors in words, values) of one scope, by precedence; the last of them is all the rest."""
    rest = ""
    for setting in settings:
        entries = setting if isinstance(setting, list) else [] if setting is None else [setting]
        if entries and not hasattr(entries[0], "value"):
            yield rest, tuple(entries)
            return
        for entry in entries:
            values = entry.value if isinstance(entry.value, list) else [entry.value]
            if not values:  # mergekit looks further, in the next scope
                break
            if entry.filter in (None, "", "*"):
                yield rest, tuple(values)
                return
            yield f"tensors with `{entry.filter}` in their names", tuple(values)
            rest = "all others"
    yield rest, (default,)
