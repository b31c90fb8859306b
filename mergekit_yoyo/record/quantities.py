"""What is shown of each model, as data: the commands, the page and the card loop over it.

One more quantity is one more line of `QUANTITIES`; if the record does not hold it yet, also a
column of `TensorLine`, and a field of that name in the `Details` of a merge.
"""

from collections.abc import Callable, Sequence
from math import isnan
from typing import NamedTuple

import numpy as np

from mergekit_yoyo.record.statistics import Array, TensorStatistics, mean, over_elements


def rms(values: Array, weights: Array | None = None) -> Array:
    """Root mean square over the first axis of what is not NaN."""
    return np.asarray(np.sqrt(mean(values**2, weights)))


def geometric(values: Array, weights: Array | None = None) -> Array:
    """Geometric mean over the first axis of what is not NaN; of positive numbers."""
    return np.asarray(np.exp(mean(np.log(values), weights)))


def fixed(value: float) -> str:
    """Three digits after the point."""
    return "-" if isnan(value) else f"{value:.3f}"


def number(value: float) -> str:
    """Three digits after the point, or three significant ones where it is far from 1."""
    return (
        fixed(value) if isnan(value) or value == 0 or 0.001 <= abs(value) < 100 else f"{value:.3g}"
    )


def percent(value: float) -> str:
    """A share of the weights' size, as `inspect` says distances."""
    return "-" if isnan(value) else f"{100 * value:.2f} %"


class Quantity(NamedTuple):
    """Something known of each model.

    title: of its column or row. meaning: a clause that follows the title. values: [P, M] of a
    tensor, NaN where it is unknown. average: over problems, and over tensors with their elements as
    weights. text: for the terminal. card: its title in a model card, if that shows it.
    """

    title: str
    meaning: str
    values: Callable[[TensorStatistics], Array]
    average: Callable[[Array, Array | None], Array] = mean
    text: Callable[[float], str] = number
    card: str | None = None

    def of_tensor(self, tensor: TensorStatistics) -> Array:
        """[M], over the problems of a tensor."""
        return self.average(self.values(tensor), None)

    def over(self, tensors: Sequence[TensorStatistics], models: int) -> Array:
        """[M], over all elements of some tensors."""
        return over_elements(tensors, self.of_tensor, (models,), self.average)


WEIGHT = Quantity(
    "weight",
    "1 is full trust, 0 is rejected; mean over all elements",
    lambda tensor: tensor.weights,
    text=fixed,
    card="mean weight",
)
PRIOR = Quantity(
    "given",
    "the weight that the model was given, where all have a mean of 1",
    lambda tensor: tensor.columns["priors"],
    card="given weight",
)
DISTANCE = Quantity(
    "distance",
    "from the center, in % of the size of the weights themselves",
    lambda tensor: tensor.distances,
    rms,
    text=percent,
)
# a geometric mean over all elements: neither one exploded tensor nor many small norms decide it
SIZE = Quantity(
    "size",
    "the norm, in units of the other models' median",
    lambda tensor: tensor.sizes,
    geometric,
)
RECALLED = Quantity(
    "recalled",
    "how much of its own difference from the center a model has back",
    lambda tensor: tensor.columns["recalled"],
)
QUANTITIES = (WEIGHT, PRIOR, DISTANCE, SIZE, RECALLED)


def totals(tensors: Sequence[TensorStatistics], models: int) -> dict[Quantity, Array]:
    """[M] of each quantity over all elements of a merge; without those that no model has."""
    found = {quantity: quantity.over(tensors, models) for quantity in QUANTITIES}
    return {quantity: values for quantity, values in found.items() if not np.isnan(values).all()}
