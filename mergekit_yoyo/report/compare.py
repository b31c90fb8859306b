"""Two merges of the same inputs, tensor by tensor: which options differ, which weights moved."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.record.layers import Place, by_kind, by_layer
from mergekit_yoyo.record.quantities import RECALLED, WEIGHT
from mergekit_yoyo.record.reading import Record
from mergekit_yoyo.record.schema import Scalar
from mergekit_yoyo.record.statistics import (
    Array,
    TensorStatistics,
    mean,
    models_of,
    statistics_of,
)
from mergekit_yoyo.report.summary import short_names

NORM_TOLERANCE = 1e-4  # relative: records round to 1e-6, devices add up in another order
WEIGHT_TOLERANCE = 1e-5  # weights that differ by less are the same, rounded


@dataclass(frozen=True)
class OptionChange:
    """An option that differs, and in how many of the tensors that both merges have."""

    name: str
    a: str
    b: str
    tensors: int


@dataclass(frozen=True)
class ModelChange:
    """One model's mean weights over all elements, the mean size of its change, in how many
    problems each merge rejected it, and how much of its own residual each gives back: mean over
    all elements, NaN without recall."""

    name: str
    short: str
    a: float
    b: float
    change: float
    rejected_a: int
    rejected_b: int
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
class RecordComparison:
    """Two records compared. kinds, layers: mean change [M] of the weights in each. largest: the
    tensors with a weight that moved, the largest move first."""

    a: Record
    b: Record
    options: list[OptionChange]
    models: list[ModelChange]
    changes: list[TensorChange]
    kinds: dict[str, Array]
    layers: dict[int, Array]
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
    moved = [change for change in changes if change.largest > WEIGHT_TOLERANCE]
    return RecordComparison(
        a=a,
        b=b,
        options=_options(a, b, common),
        models=_models(names, both, changes),
        changes=changes,
        kinds={kind: _mean_change(group) for kind, group in by_kind(changes).items()},
        layers={layer: _mean_change(group) for layer, group in by_layer(changes).items()},
        largest=sorted(moved, key=lambda change: -change.largest),
        warnings=_warnings(a, b, here, there),
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


def _mean_change(changes: Sequence[TensorChange], *, sizes: bool = False) -> Array:
    """Mean over elements of the changes, or of their sizes."""
    elements = np.array([change.elements for change in changes], dtype=np.float64)
    values = np.stack([change.size if sizes else change.change for change in changes])
    return mean(values, elements[:, None])


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
        _mean_change(changes, sizes=True),
        *(np.sum([t.rejected for t in tensors], axis=0) for tensors in (here, there)),
        *(RECALLED.over(tensors, len(names)) for tensors in (here, there)),
    ]
    return [
        ModelChange(name, short, *(column[i].item() for column in columns))
        for i, (name, short) in enumerate(short_names(names).items())
    ]


def _options(a: Record, b: Record, common: Iterable[str]) -> list[OptionChange]:
    changed: Counter[tuple[str, str, str]] = Counter()
    values_a, values_b = _effective(a), _effective(b)
    for tensor in common:
        one, other = values_a[tensor], values_b[tensor]
        for option in sorted(one | other):
            if one.get(option) != other.get(option):
                changed[option, _said(one, option), _said(other, option)] += 1
    return [OptionChange(*key, tensors=count) for key, count in changed.items()]


def _effective(record: Record) -> dict[str, dict[str, Scalar]]:
    """All options of each tensor; the way to the consensus and the base count as such."""
    return {
        tensor.name: {
            "base_model": record.header.base,
            "consensus": tensor.consensus,
            **record.header.parameters,
            **tensor.parameters,
        }
        for tensor in record.tensors
    }


def _said(options: dict[str, Scalar], name: str) -> str:
    value = options.get(name)
    return "-" if value is None else str(value)


def _warnings(
    a: Record, b: Record, here: dict[str, TensorStatistics], there: dict[str, TensorStatistics]
) -> list[str]:
    found = []
    for label, record, own, others in (("A", a, here, there), ("B", b, there, here)):
        if record.missing or record.truncated:
            found.append(f"{label} is unfinished: {len(record.tensors):,} tensors are recorded.")
        if alone := [name for name in own if name not in others]:
            more = f" and {len(alone) - 3:,} more" if len(alone) > 3 else ""
            found.append(f"only in {label}: {', '.join(alone[:3])}{more}.")
    for package in sorted(a.header.versions.keys() | b.header.versions.keys()):
        versions = [record.header.versions.get(package, "-") for record in (a, b)]
        if versions[0] != versions[1]:
            found.append(f"made with {package} {versions[0]} (A) and {versions[1]} (B).")
    return found
