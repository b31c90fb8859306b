"""The numbers of a record as arrays, and what follows from them: the only place that computes it.

`inspect`, `report`, the card and the pictures show what stands here and in `quantities`. M counts
the models of the whole merge, P the problems of a tensor. A NaN stands for a model that is no input
of a tensor, and for what the record leaves out; no mean counts it.

All lengths are in the unit scale of the method, where every input has RMS 1: divided by the square
root of the number of elements, a distance of 0 is the same tensor, 1.41 an unrelated one and 2 the
opposite one. Over problems and tensors every element counts once, whatever is averaged: a distance
over a whole model is that of its tensors put end to end, and so is a cosine.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.record.layers import Place, comes_first, order_of, place_of
from mergekit_yoyo.record.reading import Record
from mergekit_yoyo.record.schema import COLUMNS, Number, Per, TensorLine, pairs

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TensorStatistics:
    """One tensor. P is 0 if it has a single input and passed through.

    columns: those of the record that have a number per input, [P, M], by their field. cosines:
    [P, M, M] of the residuals. rejected: [M] problems in which a model was rejected. elements: of
    the whole tensor.
    """

    line: TensorLine
    place: Place
    elements: int
    columns: dict[str, Array]
    cosines: Array
    rejected: NDArray[np.int64]

    @property
    def problems(self) -> int:
        return len(self.cosines)

    @property
    def weights(self) -> Array:
        """[P, M] as recorded."""
        return self.columns["weights"]

    @property
    def distances(self) -> Array:
        """[P, M] RMS distance from the center."""
        root = np.sqrt(self.elements / max(self.problems, 1))
        return np.asarray(self.columns["residual_norms"] / root)

    @property
    def squares(self) -> Array:
        """[P, M, M] squared distance of the first model from the center, where both are inputs."""
        squares = self.distances[:, :, None] ** 2
        return np.asarray(np.where(np.isnan(self.distances)[:, None, :], np.nan, squares))

    @property
    def products(self) -> Array:
        """[P, M, M] mean product of two residuals; a cosine is null where one of them is zero."""
        lengths = self.distances[:, :, None] * self.distances[:, None, :]
        return np.asarray(lengths * np.nan_to_num(self.cosines))

    @cached_property
    def squared_gaps(self) -> Array:
        """[M, M] mean squared distance between two models."""
        gaps = self.squares + self.squares.transpose(0, 2, 1) - 2 * self.products
        return mean(np.maximum(gaps, 0.0))  # round-off must not make a square negative

    @cached_property
    def sizes(self) -> Array:
        """[P, M] norm in units of the other models' median norm (of their logarithms).

        Of the others': a model that is part of its own yardstick looks smaller than it is, the more
        so the fewer models there are (among 1, 2, 4 and 8 the last is 4 times as large as its
        median fellow, yet 2.67 times the median of all). Of logarithms: 4 times as large and 4
        times as small are equally far. NaN where a norm is zero, or nobody else's is positive.
        """
        norms = self.columns["norms"]
        logs = np.log(norms, out=np.full_like(norms, np.nan), where=norms > 0)
        sizes = np.full_like(norms, np.nan)
        for model in range(norms.shape[1]):
            others = np.delete(logs, model, axis=1)
            known = ~np.isnan(others).all(1)
            sizes[known, model] = np.exp(logs[known, model] - np.nanmedian(others[known], axis=1))
        return sizes

    @cached_property
    def disagreement(self) -> float:
        """How far from the center lie the inputs that are listened to: the RMS of their distances,
        weighted by their weights. A rejected input does not count."""
        weights = np.nan_to_num(self.weights)
        total = weights.sum()
        squares = np.nan_to_num(self.distances) ** 2
        return float(np.sqrt((weights * squares).sum() / total)) if total > 0 else float("nan")

    @property
    def rounding(self) -> float:
        """RMS over the problems of what writing the merge changed, as a share of its size; NaN
        where the record does not say."""
        known = np.array([x for x in self.line.rounding or () if x is not None])
        return float(np.sqrt((known**2).mean())) if known.size else float("nan")


def models_of(record: Record) -> list[str]:
    """Names of all inputs: the header's, then those that only some tensors have."""
    names = dict.fromkeys(record.header.inputs)
    for tensor in record.tensors:
        names |= dict.fromkeys(tensor.inputs or ())
    return list(names)


def statistics_of(lines: Iterable[TensorLine], models: Sequence[str]) -> list[TensorStatistics]:
    """The statistics of every tensor, in the model's order: embeddings, layers, norm and head.

    lines: with their inputs, as `read_record` gives them. models: all that are inputs of any.
    """
    index = {model: i for i, model in enumerate(models)}
    return sorted((_statistics(line, index) for line in lines), key=_order)


def mean(values: Array, weights: Array | None = None) -> Array:
    """Mean over the first axis of what is not NaN, NaN where nothing is."""
    known = ~np.isnan(values)
    each = known * (1.0 if weights is None else weights)
    total = each.sum(0)
    added = (np.where(known, values, 0.0) * each).sum(0)
    return np.asarray(np.divide(added, total, out=np.full_like(added, np.nan), where=total > 0))


def over_elements(
    tensors: Sequence[TensorStatistics],
    value: Callable[[TensorStatistics], Array],
    shape: tuple[int, ...],
    average: Callable[[Array, Array | None], Array] = mean,
) -> Array:
    """Average of `value` (of that shape) over tensors, every element counting once."""
    if not tensors:
        return np.full(shape, np.nan)
    elements = np.array([t.elements for t in tensors], dtype=np.float64)
    values = np.stack([value(tensor) for tensor in tensors])
    return average(values, elements.reshape(-1, *[1] * len(shape)))


def gaps(tensors: Sequence[TensorStatistics], models: int) -> Array:
    """[M, M] RMS distance between two models, over the tensors that both are inputs of."""
    return np.asarray(np.sqrt(over_elements(tensors, lambda t: t.squared_gaps, (models, models))))


def cosines(tensors: Sequence[TensorStatistics], models: int) -> Array:
    """[M, M] cosine between two models' weights, every tensor scaled to RMS 1; NaN: never met."""
    return np.asarray(1 - gaps(tensors, models) ** 2 / 2)


def residual_cosines(tensors: Sequence[TensorStatistics], models: int) -> Array:
    """[M, M] cosine between what is each model's own, over the tensors that both are inputs of.

    Of all residuals put end to end, so that a norm of some thousand elements does not say as much
    as a matrix of millions. NaN for models that never meet or lie in the center.
    """
    shape = (models, models)
    products = over_elements(tensors, lambda t: mean(t.products), shape)
    squares = over_elements(tensors, lambda t: mean(t.squares), shape)
    lengths = np.sqrt(squares * squares.T)
    unknown = np.full(shape, np.nan)
    return np.asarray(np.divide(products, lengths, out=unknown, where=lengths > 0))


def _order(tensor: TensorStatistics) -> tuple[object, ...]:
    layer, kind = tensor.place
    if layer is None:
        return (0 if comes_first(kind) else 2, 0, order_of(kind), tensor.line.name)
    return (1, layer, order_of(kind), tensor.line.name)


def _statistics(line: TensorLine, index: dict[str, int]) -> TensorStatistics:
    columns = [index[model] for model in line.inputs or ()]
    models, problems = len(index), len(line.weights)

    def spread(rows: list[list[Number]] | None) -> Array:
        """Rows of the K inputs in the columns of all models."""
        values = np.full((problems, models), np.nan)
        if rows:
            values[:, columns] = np.array(rows, dtype=np.float64)
        return values

    cosines = np.full((problems, models, models), np.nan)
    cosines[:, columns, columns] = 1.0
    recorded = np.array(line.cosines, dtype=np.float64)
    for pair, (i, j) in enumerate(pairs(len(columns)) if problems else ()):
        a, b = columns[i], columns[j]
        cosines[:, a, b] = cosines[:, b, a] = recorded[:, pair]
    rejected = np.zeros(models, dtype=np.int64)
    for finding in line.warnings:
        if finding.kind == "rejected" and finding.model in index:
            rejected[index[finding.model]] += finding.problems
    return TensorStatistics(
        line=line,
        place=place_of(line.name),
        elements=prod(line.shape),
        columns={
            name: spread(getattr(line, name)) for name, per in COLUMNS.items() if per is Per.INPUT
        },
        cosines=cosines,
        rejected=rejected,
    )
