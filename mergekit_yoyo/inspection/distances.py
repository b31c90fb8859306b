"""How far models lie from each other, read off the lines that a merge's record would have.

All distances are between u_k = x_k / RMS(x_k), in units of their own size: 0.03 is a model 3 % away
from the center, and two unrelated ones are sqrt(2) from each other.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from mergekit_yoyo.record.layers import Place, place_of
from mergekit_yoyo.record.schema import TensorLine, pairs

Pair = tuple[str, str]


@dataclass(frozen=True)
class TensorDistances:
    """One tensor, its experts put together.

    distances: of each model from the center. cosines: between the models' own weights, by pair.
    residual_cosines: of what is theirs alone. weights: the mean over its problems. sizes: norms.
    """

    name: str
    shape: tuple[int, ...]
    distances: dict[str, float]
    cosines: dict[Pair, float]
    residual_cosines: dict[Pair, float]
    weights: dict[str, float]
    sizes: dict[str, float]

    @property
    def place(self) -> Place:
        """Its layer and kind of module."""
        return place_of(self.name)

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def cosine(self, one: str, other: str) -> float:
        """Between two models' weights."""
        return self.cosines[(one, other) if (one, other) in self.cosines else (other, one)]


def distances_of(line: TensorLine) -> TensorDistances:
    """The distances in a line that names its inputs and has at least two."""
    models = line.inputs or []
    elements = math.prod(line.shape)
    squared = dict.fromkeys(models, 0.0)
    between: dict[Pair, float] = defaultdict(float)
    products: dict[Pair, float] = defaultdict(float)
    for norms, cosines in zip(line.residual_norms, line.cosines, strict=True):
        lengths = [norm or 0.0 for norm in norms]
        for model, length in zip(models, lengths, strict=True):
            squared[model] += length**2
        for (i, j), cosine in zip(pairs(len(models)), cosines, strict=True):
            product = (cosine or 0.0) * lengths[i] * lengths[j]
            products[models[i], models[j]] += product
            between[models[i], models[j]] += lengths[i] ** 2 + lengths[j] ** 2 - 2 * product
    return TensorDistances(
        line.name,
        tuple(line.shape),
        {model: math.sqrt(value / elements) for model, value in squared.items()},
        {pair: 1 - value / (2 * elements) for pair, value in between.items()},
        {
            (a, b): value / math.sqrt(squared[a] * squared[b]) if squared[a] * squared[b] else 0.0
            for (a, b), value in products.items()
        },
        {model: _mean(column) for model, column in _columns(models, line.weights)},
        {
            model: math.sqrt(sum(norm**2 for norm in column))
            for model, column in _columns(models, line.norms)
        },
    )


def spread(tensors: Iterable[TensorDistances], model: str) -> float:
    """A model's distance from the center over many tensors, by their elements; NaN for none."""
    found = [(t.distances[model] ** 2, t.elements) for t in tensors if model in t.distances]
    total = sum(elements for _, elements in found)
    return math.sqrt(sum(d * n for d, n in found) / total) if total else math.nan


def grouped(
    tensors: Iterable[TensorDistances], key: Callable[[TensorDistances], Hashable]
) -> dict[Hashable, list[TensorDistances]]:
    """Tensors by a property of theirs, in their order."""
    groups: dict[Hashable, list[TensorDistances]] = defaultdict(list)
    for tensor in tensors:
        groups[key(tensor)].append(tensor)
    return groups


def mean_weight(tensors: Iterable[TensorDistances], model: str) -> float:
    """What a model weighs on average, each tensor counting once."""
    return _mean([t.weights[model] for t in tensors if model in t.weights])


def mean_cosine(tensors: Sequence[TensorDistances], one: str, other: str) -> float:
    """Between two models' weights, by the tensors' elements; NaN if they never meet."""
    both = [t for t in tensors if one in t.distances and other in t.distances]
    total = sum(t.elements for t in both)
    return sum(t.cosine(one, other) * t.elements for t in both) / total if total else math.nan


def mean_residual_cosine(tensors: Sequence[TensorDistances], one: str, other: str) -> float | None:
    """Between what is each model's own, each tensor counting once; None if they never meet."""
    wanted = {(one, other), (other, one)}
    found = [
        cosine for t in tensors for pair, cosine in t.residual_cosines.items() if pair in wanted
    ]
    return _mean(found) if found else None


def relative_size(tensors: Iterable[TensorDistances], model: str) -> float:
    """A model's norms in units of the other models' median, in the median over tensors."""
    ratios = []
    for tensor in tensors:
        others = [size for name, size in tensor.sizes.items() if name != model]
        if model in tensor.sizes and others and (middle := median(others)):
            ratios.append(tensor.sizes[model] / middle)
    return median(ratios) if ratios else 1.0


def families(
    tensors: Sequence[TensorDistances], models: Sequence[str], least: float
) -> list[set[str]]:
    """Models put together where their weights have at least the cosine `least`; largest first."""
    found = [{model} for model in models]
    for one, other in combinations(models, 2):
        if mean_cosine(tensors, one, other) >= least:
            joined = [family for family in found if one in family or other in family]
            found = [family for family in found if family not in joined] + [set().union(*joined)]
    return sorted(found, key=len, reverse=True)


def _columns(
    models: Sequence[str], rows: Sequence[Sequence[float | None]]
) -> list[tuple[str, list[float]]]:
    return [(model, [row[k] or 0.0 for row in rows]) for k, model in enumerate(models)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
