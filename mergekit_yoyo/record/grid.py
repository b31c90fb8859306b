"""A quantity by layer and kind of module."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mergekit_yoyo.record.layers import comes_first, order_of
from mergekit_yoyo.record.quantities import Quantity
from mergekit_yoyo.record.statistics import Array, TensorStatistics


@dataclass(frozen=True)
class Grid:
    """A quantity over the elements of tensors in one place, NaN where there are none.

    kinds: of modules, in the model's order; layers: their numbers. values: [M, kinds, layers].
    outside: names of kinds that lie in no layer; outside_values: [M, outside].
    """

    kinds: list[str]
    layers: list[int]
    values: Array
    outside: list[str]
    outside_values: Array

    @property
    def before(self) -> int:
        """How many of the kinds outside come before the layers; they stand first."""
        return sum(map(comes_first, self.outside))

    @property
    def known(self) -> Array:
        """All values that are known, in one row."""
        values = np.append(self.values.ravel(), self.outside_values.ravel())
        return np.asarray(values[~np.isnan(values)])


def grid(tensors: Iterable[TensorStatistics], models: int, quantity: Quantity) -> Grid:
    """The quantity by kind and layer, without the tensors that passed through."""
    places: dict[tuple[int | None, str], list[TensorStatistics]] = defaultdict(list)
    for tensor in tensors:
        places[tensor.place].append(tensor)
    layers = sorted({layer for layer, _ in places if layer is not None})
    kinds = sorted({kind for layer, kind in places if layer is not None}, key=order_of)
    outside = sorted(
        {kind for layer, kind in places if layer is None},
        key=lambda kind: (not comes_first(kind), order_of(kind)),
    )

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
