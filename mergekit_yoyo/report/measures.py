"""The numbers of a record as arrays: one `Measures` per tensor, for the models of the whole merge.

All lengths are in the unit scale of the method, where every input has RMS 1: divided by the square
root of the number of elements, a distance of 0 is the same tensor, 1.41 an unrelated one and 2 the
opposite one.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.record.layers import Place, place_of
from mergekit_yoyo.record.reading import Record
from mergekit_yoyo.record.schema import Number, TensorLine, pairs

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measures:
    """One tensor. P problems (0 if it has a single input and passed through), M models.

    NaN stands for a model that is no input of this tensor, and for what the record leaves out.

    weights, norms, center_weights, recalled: [P, M] as recorded. distances: [P, M] from the center.
    gaps: [P, M, M] between the models. rejected: [M] problems in which a model was rejected.
    elements: of the whole tensor.
    """

    line: TensorLine
    place: Place
    elements: int
    weights: Array
    norms: Array
    center_weights: Array
    recalled: Array
    distances: Array
    gaps: Array
    cosines: Array
    rejected: NDArray[np.int64]

    @property
    def problems(self) -> int:
        return len(self.weights)

    @cached_property
    def weight(self) -> Array:
        """[M] mean weight over the problems."""
        return mean(self.weights, axis=0)

    @cached_property
    def distance(self) -> Array:
        """[M] RMS distance from the center."""
        return np.sqrt(mean(self.distances**2, axis=0))

    @cached_property
    def log_size(self) -> Array:
        """[M] logarithm of the norm in units of the inputs' median norm, mean over the problems."""
        inputs = ~np.isnan(self.norms).all(0)
        median = np.median(self.norms[:, inputs], axis=1, keepdims=True)
        usable = (median > 0) & (self.norms > 0)
        ratio = np.divide(self.norms, median, out=np.ones_like(self.norms), where=usable)
        return mean(np.where(usable, np.log(ratio), np.nan), axis=0)

    @cached_property
    def disagreement(self) -> float:
        """How far from the center lie the inputs that are listened to: the RMS of their distances,
        weighted by their weights. A rejected input does not count."""
        weights = np.nan_to_num(self.weights)
        squares = np.nan_to_num(self.distances) ** 2
        total = weights.sum()
        return float(np.sqrt((weights * squares).sum() / total)) if total > 0 else float("nan")


def models_of(record: Record) -> list[str]:
    """Names of all inputs: the header's, then those that only some tensors have."""
    names = dict.fromkeys(record.header.inputs)
    for tensor in record.tensors:
        names |= dict.fromkeys(tensor.inputs or ())
    return list(names)


def measure(record: Record) -> list[Measures]:
    """The measures of every tensor, ordered by layer and kind; those outside of layers come last.

    Models are in the order of `models_of`.
    """
    index = {model: i for i, model in enumerate(models_of(record))}
    measured = [_measure(line, index) for line in record.tensors]
    return sorted(measured, key=_order)


def mean(values: Array, axis: int | None = None, weights: Array | None = None) -> Array:
    """Mean of what is not NaN, NaN where nothing is."""
    known = ~np.isnan(values)
    each = known * (1.0 if weights is None else weights)
    total = each.sum(axis)
    added = (np.where(known, values, 0.0) * each).sum(axis)
    return np.asarray(np.divide(added, total, out=np.full_like(added, np.nan), where=total > 0))


def _order(tensor: Measures) -> tuple[bool, int, str, str]:
    layer, kind = tensor.place
    return (layer is None, layer or 0, kind, tensor.line.name)


def _measure(line: TensorLine, index: dict[str, int]) -> Measures:
    inputs = line.inputs or []
    columns = [index[model] for model in inputs]
    models, problems = len(index), len(line.weights)
    elements = prod(line.shape)

    def spread(rows: list[list[Number]] | None) -> Array:
        """Rows of the K inputs in the columns of all models."""
        values = np.full((problems, models), np.nan)
        if rows:
            values[:, columns] = np.array(rows, dtype=np.float64)
        return values

    lengths = spread(line.residual_norms) / np.sqrt(elements / problems if problems else 1.0)
    cosines = np.full((problems, models, models), np.nan)
    if problems:
        recorded = np.array(line.cosines, dtype=np.float64)
        for column, (i, j) in enumerate(pairs(len(inputs))):
            a, b = columns[i], columns[j]
            cosines[:, a, b] = cosines[:, b, a] = recorded[:, column]
    products = lengths[:, :, None] * lengths[:, None, :]
    squares = lengths[:, :, None] ** 2 + lengths[:, None, :] ** 2
    # a cosine is null where a residual is zero; round-off must not make a square negative
    squares = squares - 2 * products * np.nan_to_num(cosines)
    gaps = np.sqrt(np.maximum(squares, 0.0))
    gaps[:, range(models), range(models)] = 0.0
    rejected = np.zeros(models, dtype=np.int64)
    for finding in line.warnings:
        if finding.kind == "rejected" and finding.model in index:
            rejected[index[finding.model]] += finding.problems
    return Measures(
        line=line,
        place=place_of(line.name),
        elements=elements,
        weights=spread(line.weights),
        norms=spread(line.norms),
        center_weights=spread(line.center_weights),
        recalled=spread(line.recalled),
        distances=lengths,
        gaps=gaps,
        cosines=cosines,
        rejected=rejected,
    )
