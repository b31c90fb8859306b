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
    residual_cosines: of what is theirs alone. weights: the mean over its problems, of the models
    that are weighed. sizes: norms. recalled: with recall, how much of what is its own each model
    has back. strength, condition: with recall, beta and the largest condition number.
    """

    name: str
    shape: tuple[int, ...]
    distances: dict[str, float]
    cosines: dict[Pair, float]
    residual_cosines: dict[Pair, float]
    weights: dict[str, float]
    sizes: dict[str, float]
    recalled: dict[str, float]
    strength: float | None
    condition: float | None

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
    models, recalls = line.inputs or [], line.strength is not None
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
        _means(models, line.weights),
        {
            model: math.sqrt(sum((row[k] or 0.0) ** 2 for row in line.norms))
            for k, model in enumerate(models)
        },
        _means(models, line.recalled or []),
        _mean([beta for beta in line.strength or [] if beta is not None]) if recalls else None,
        max((c for c in line.condition_number or [] if c is not None), default=None),
    )


def spread(tensors: Iterable[TensorDistances], model: str) -> float:
    """A model's distance from the center over many tensors, by their elements; NaN for none."""
    return math.sqrt(
        _by_elements((t.distances[model] ** 2, t.elements) for t in tensors if model in t.distances)
    )


def grouped(
    tensors: Iterable[TensorDistances], key: Callable[[TensorDistances], Hashable]
) -> dict[Hashable, list[TensorDistances]]:
    """Tensors by a property of theirs, in their order."""
    groups: dict[Hashable, list[TensorDistances]] = defaultdict(list)
    for tensor in tensors:
        groups[key(tensor)].append(tensor)
    return groups


def mean_weight(tensors: Iterable[TensorDistances], model: str) -> float:
    """What a model weighs on average, by the tensors' elements; NaN if it is not weighed."""
    return _by_elements((t.weights[model], t.elements) for t in tensors if model in t.weights)


def mean_recalled(tensors: Iterable[TensorDistances], model: str) -> float:
    """How much of what is its own a model has back, by the tensors' elements; NaN for none."""
    return _by_elements((t.recalled[model], t.elements) for t in tensors if model in t.recalled)


def mean_cosine(tensors: Sequence[TensorDistances], one: str, other: str) -> float:
    """Between two models' weights, by the tensors' elements; NaN if they never meet."""
    both = [t for t in tensors if one in t.distances and other in t.distances]
    return _by_elements((t.cosine(one, other), t.elements) for t in both)


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


def _means(models: Sequence[str], rows: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """Of each model over the problems in which it has a number."""
    means = {
        model: _mean([value for row in rows if (value := row[k]) is not None])
        for k, model in enumerate(models)
    }
    return {model: value for model, value in means.items() if value == value}


def _by_elements(values: Iterable[tuple[float, int]]) -> float:
    """The mean of values, each with the number of elements it stands for; NaN for none."""
    found = list(values)
    total = sum(elements for _, elements in found)
    return sum(value * elements for value, elements in found) / total if total else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
