"""Two merges of the same inputs, tensor by tensor: which options differ, which weights moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.record.grid import Grid, grid
from mergekit_yoyo.record.layers import Place, by_kind, by_layer
from mergekit_yoyo.record.quantities import DISTANCE, RECALLED, WEIGHT, Quantity
from mergekit_yoyo.record.reading import Record
from mergekit_yoyo.record.statistics import (
    Array,
    TensorStatistics,
    mean,
    models_of,
    statistics_of,
)
from mergekit_yoyo.report.differences import (
    OptionChange,
    changed_options,
    odds,
    yaml_difference,
)
from mergekit_yoyo.report.summary import short_names

NORM_TOLERANCE = 1e-4  # relative: records round to 1e-6, devices add up in another order
TOLERANCE = 1e-5  # weights and distances that differ by less are the same, rounded
Key = TypeVar("Key")
# what two merges of the same inputs can differ in, and its name in a sentence
MOVING = {WEIGHT: "weight", DISTANCE: "distance", RECALLED: "share recalled"}


@dataclass(frozen=True)
class ModelChange:
    """One model's mean weights over all elements, the mean size of its change, in how many
    problems each merge rejected it, how far it is from each center, and how much of its own
    residual each gives back: over all elements, the last NaN without recall."""

    name: str
    short: str
    a: float
    b: float
    change: float
    rejected_a: int
    rejected_b: int
    distance_a: float
    distance_b: float
    recalled_a: float
    recalled_b: float


@dataclass(frozen=True)
class TensorChange:
    """By how much the weights of one tensor differ.

    change: [M] mean weight in B less that in A. size: [M] mean |change|, problem by problem where
    both merges have the same problems.
    """

    name: str
    place: Place
    elements: int
    change: Array
    size: Array

    @property
    def largest(self) -> float:
        return float(np.nanmax(np.append(self.size, 0.0)))


@dataclass(frozen=True)
class Move:
    """How a quantity moved. a, b: what it is in each merge, over the tensors that both have.
    kinds, layers: the change [M] of its mean over the elements of each."""

    a: Grid
    b: Grid
    kinds: dict[str, Array]
    layers: dict[int, Array]


@dataclass(frozen=True)
class RecordComparison:
    """Two records compared. moves: of each quantity that any model's differs in. yaml: the lines
    that differ, `-` from A and `+` from B; empty where a record has no YAML. largest: the tensors
    with a weight that moved, the largest move first."""

    a: Record
    b: Record
    options: list[OptionChange]
    models: list[ModelChange]
    changes: list[TensorChange]
    moves: dict[Quantity, Move]
    yaml: list[str]
    largest: list[TensorChange]
    warnings: list[str]


def compare_records(a: Record, b: Record) -> RecordComparison:
    """Compare two merges of the same inputs.

    Raises:
        YoyoError: they are not of the same inputs: other names, shapes or norms; or they have no
            tensor in common.
    """
    names = models_of(a)
    if sorted(names) != sorted(models_of(b)):
        raise YoyoError(
            f"{a.path} and {b.path}: not merges of the same inputs ({', '.join(names)}; "
            f"{', '.join(models_of(b))}). Compare merges of the same models."
        )
    here = {tensor.line.name: tensor for tensor in statistics_of(a.tensors, names)}
    there = {tensor.line.name: tensor for tensor in statistics_of(b.tensors, names)}
    common = [name for name in here if name in there]
    if not common:
        raise YoyoError(f"{a.path} and {b.path} have no tensor in common.")
    both = [
        (here[name], there[name]) for name in common if here[name].problems and there[name].problems
    ]
    for one, other in both:
        _check_inputs(a, b, names, one, other)
    changes = [_change(one, other) for one, other in both]
    moved = [change for change in changes if change.largest > TOLERANCE]
    return RecordComparison(
        a=a,
        b=b,
        options=changed_options(a, b, common),
        models=_models(names, both, changes),
        changes=changes,
        moves=_moves(both, len(names)),
        yaml=yaml_difference(a, b),
        largest=sorted(moved, key=lambda change: -change.largest),
        warnings=odds(a, b, here, there),
    )


def _check_inputs(
    a: Record, b: Record, names: list[str], one: TensorStatistics, other: TensorStatistics
) -> None:
    """The inputs are the same if their norms are; experts may be packed in one merge only."""
    name = one.line.name
    if one.line.shape != other.line.shape:
        raise YoyoError(
            f"{name}: of shape {one.line.shape} in {a.path} and {other.line.shape} in {b.path}: "
            "not merges of the same inputs."
        )
    norms, others = (np.sqrt((tensor.columns["norms"] ** 2).sum(0)) for tensor in (one, other))
    for model, norm, norm_b in zip(names, norms, others, strict=True):
        same = np.isclose(norm, norm_b, rtol=NORM_TOLERANCE, atol=0.0, equal_nan=True)
        if not same:
            raise YoyoError(
                f"{name}: {model} has norm {norm:.6g} in {a.path} and {norm_b:.6g} in {b.path}: "
                "not merges of the same inputs."
            )


def _change(one: TensorStatistics, other: TensorStatistics) -> TensorChange:
    change = WEIGHT.of_tensor(other) - WEIGHT.of_tensor(one)
    size = np.abs(change)
    if one.problems == other.problems:
        size = mean(np.abs(other.weights - one.weights))
    return TensorChange(one.line.name, one.place, one.elements, change, size)


def _moves(
    both: Sequence[tuple[TensorStatistics, TensorStatistics]], models: int
) -> dict[Quantity, Move]:
    here, there = [one for one, _ in both], [other for _, other in both]
    found = {}
    for quantity in MOVING:
        a, b = grid(here, models, quantity), grid(there, models, quantity)
        steps = [np.abs(quantity.of_tensor(y) - quantity.of_tensor(x)) for x, y in both]
        if not np.any(np.array(steps) > TOLERANCE):
            continue
        found[quantity] = Move(
            a,
            b,
            _changes(quantity, by_kind(here), by_kind(there), models),
            _changes(quantity, by_layer(here), by_layer(there), models),
        )
    return found


def _changes(
    quantity: Quantity,
    a: Mapping[Key, list[TensorStatistics]],
    b: Mapping[Key, list[TensorStatistics]],
    models: int,
) -> dict[Key, Array]:
    """[M] change of a quantity in each group of tensors."""
    return {
        place: quantity.over(b[place], models) - quantity.over(group, models)
        for place, group in a.items()
    }


def _models(
    names: list[str],
    both: Sequence[tuple[TensorStatistics, TensorStatistics]],
    changes: Sequence[TensorChange],
) -> list[ModelChange]:
    if not both:
        return []
    here, there = [one for one, _ in both], [other for _, other in both]
    columns: list[NDArray[Any]] = [
        *(WEIGHT.over(tensors, len(names)) for tensors in (here, there)),
        mean(
            np.stack([change.size for change in changes]),
            np.array([change.elements for change in changes], dtype=np.float64)[:, None],
        ),
        *(np.sum([t.rejected for t in tensors], axis=0) for tensors in (here, there)),
        *(DISTANCE.over(tensors, len(names)) for tensors in (here, there)),
        *(RECALLED.over(tensors, len(names)) for tensors in (here, there)),
    ]
    return [
        ModelChange(name, short, *(column[i].item() for column in columns))
        for i, (name, short) in enumerate(short_names(names).items())
    ]
