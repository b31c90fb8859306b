"""Means over the elements of many tensors: of all, and by layer and kind of module."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mergekit_yoyo.report.measures import Array, Measures, mean


@dataclass(frozen=True)
class Grid:
    """Means over the elements of tensors in one place, NaN where there are none.

    kinds: of modules; layers: their numbers. values: [M, kinds, layers]. outside: names of kinds
    that lie in no layer; outside_values: [M, outside].
    """

    kinds: list[str]
    layers: list[int]
    values: Array
    outside: list[str]
    outside_values: Array


def over_elements(
    tensors: Sequence[Measures], value: Callable[[Measures], Array], shape: tuple[int, ...]
) -> Array:
    """Mean of `value` (of that shape) over tensors, every element counting once."""
    if not tensors:
        return np.full(shape, np.nan)
    sizes = np.array([t.elements for t in tensors], dtype=np.float64)
    values = np.stack([value(tensor) for tensor in tensors])
    return mean(values, axis=0, weights=sizes.reshape(-1, *[1] * len(shape)))


def grid(tensors: Iterable[Measures], models: int, value: Callable[[Measures], Array]) -> Grid:
    """Means of `value` ([M]) by kind and layer, without the tensors that passed through."""
    places: dict[tuple[int | None, str], list[Measures]] = defaultdict(list)
    for tensor in tensors:
        places[tensor.place].append(tensor)
    layers = sorted({layer for layer, _ in places if layer is not None})
    kinds = sorted({kind for layer, kind in places if layer is not None})
    outside = sorted({kind for layer, kind in places if layer is None})

    def cell(layer: int | None, kind: str) -> Array:
        here = [tensor for tensor in places.get((layer, kind), []) if tensor.problems]
        return over_elements(here, value, (models,))

    inner = [[cell(layer, kind) for layer in layers] for kind in kinds]
    return Grid(
        kinds,
        layers,
        np.moveaxis(np.array(inner).reshape(len(kinds), len(layers), models), 2, 0),
        outside,
        np.array([cell(None, kind) for kind in outside]).reshape(len(outside), models).T,
    )
