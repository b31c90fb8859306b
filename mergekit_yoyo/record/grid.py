"""A quantity by layer and kind of module."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mergekit_yoyo.record.quantities import Quantity
from mergekit_yoyo.record.statistics import Array, TensorStatistics


@dataclass(frozen=True)
class Grid:
    """A quantity over the elements of tensors in one place, NaN where there are none.

    kinds: of modules; layers: their numbers. values: [M, kinds, layers]. outside: names of kinds
    that lie in no layer; outside_values: [M, outside].
    """

    kinds: list[str]
    layers: list[int]
    values: Array
    outside: list[str]
    outside_values: Array


def grid(tensors: Iterable[TensorStatistics], models: int, quantity: Quantity) -> Grid:
    """The quantity by kind and layer, without the tensors that passed through."""
    places: dict[tuple[int | None, str], list[TensorStatistics]] = defaultdict(list)
    for tensor in tensors:
        places[tensor.place].append(tensor)
    layers = sorted({layer for layer, _ in places if layer is not None})
    kinds = sorted({kind for layer, kind in places if layer is not None})
    outside = sorted({kind for layer, kind in places if layer is None})

    def cell(layer: int | None, kind: str) -> Array:
        here = [tensor for tensor in places.get((layer, kind), []) if tensor.problems]
        return quantity.over(here, models)

    inner = [[cell(layer, kind) for layer in layers] for kind in kinds]
    return Grid(
        kinds,
        layers,
        np.moveaxis(np.array(inner).reshape(len(kinds), len(layers), models), 2, 0),
        outside,
        np.array([cell(None, kind) for kind in outside]).reshape(len(outside), models).T,
    )
