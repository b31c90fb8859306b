"""What a merge did, in a few numbers: totals per model, by layer and kind, and what to look at."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from mergekit_yoyo.record.findings import (
    IGNORED,
    count_found,
    odd_sizes,
    recall_said,
    rounding_said,
    weighed,
)
from mergekit_yoyo.record.grid import Grid, grid
from mergekit_yoyo.record.layers import by_layer
from mergekit_yoyo.record.quantities import DISTANCE, WEIGHT, Quantity, totals
from mergekit_yoyo.record.reading import Record
from mergekit_yoyo.record.schema import FindingKind, Scalar
from mergekit_yoyo.record.statistics import (
    Array,
    TensorStatistics,
    gaps,
    models_of,
    statistics_of,
)

FOLLOWED = 0.5  # a model of at least this mean weight in a layer is followed there


@dataclass(frozen=True)
class ModelTotals:
    """One model in the whole merge.

    name: as in the YAML; short: its last part, if that tells it from the others. totals: its
    weight over all elements, and the other quantities that any model has. problems, rejected: in
    how many tensors (each expert counting for one) it was weighed and was rejected; an anchor of
    recall is not weighed. layer_weights: mean weight by layer; followed, ignored: the layers where
    it is at least FOLLOWED or below IGNORED.
    """

    name: str
    short: str
    totals: dict[Quantity, float]
    problems: int
    rejected: int
    layer_weights: dict[int, float]
    followed: list[int]
    ignored: list[int]

    @property
    def weight(self) -> float:
        """Mean over all elements; NaN if it is not weighed."""
        return self.totals[WEIGHT]


@dataclass(frozen=True)
class Summary:
    """A record, digested. tensors: in order of layers. gaps: [M, M] RMS distances between the
    models. contested: tensors by disagreement, the largest first. passed: tensors of one input.
    recall, rounding: what is said of them. parameters: option -> value, several if they vary by
    tensor. warnings: sentences."""

    record: Record
    tensors: list[TensorStatistics]
    models: list[ModelTotals]
    weights: Grid
    distances: Grid
    gaps: Array
    contested: list[TensorStatistics]
    passed: int
    recall: str
    rounding: str
    parameters: dict[str, str]
    warnings: list[str]

    @property
    def problems(self) -> int:
        return sum(tensor.problems for tensor in self.tensors)

    @property
    def quantities(self) -> list[Quantity]:
        """Those of the models' totals."""
        return list(self.models[0].totals) if self.models else [WEIGHT]


def summarize(record: Record) -> Summary:
    """Digest a record; see `Summary`."""
    names = models_of(record)
    tensors = statistics_of(record.tensors, names)
    merged = [tensor for tensor in tensors if tensor.problems]
    models = _models(merged, names)
    return Summary(
        record=record,
        tensors=tensors,
        models=models,
        weights=grid(tensors, len(names), WEIGHT),
        distances=grid(tensors, len(names), DISTANCE),
        gaps=gaps(merged, len(names)),
        contested=sorted(merged, key=lambda t: -np.nan_to_num(t.disagreement)),
        passed=len(tensors) - len(merged),
        recall=recall_said(merged),
        rounding=rounding_said(merged, str(record.header.parameters.get("rounding", "nearest"))),
        parameters=_parameters(record),
        warnings=_warnings(record, merged, models),
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each name, or the whole one where two share it."""
    last = {name: PurePosixPath(name).name or name for name in names}
    counts = Counter(last.values())
    return {name: short if counts[short] == 1 else name for name, short in last.items()}


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as ranges: 3 to 9 and 12 become `3-9, 12`, with an en dash."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]}\N{EN DASH}{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs
    )


def _models(merged: Sequence[TensorStatistics], names: Sequence[str]) -> list[ModelTotals]:
    known = {WEIGHT: np.full(len(names), np.nan), **totals(merged, len(names))}
    weights = {layer: WEIGHT.over(group, len(names)) for layer, group in by_layer(merged).items()}
    models = []
    for i, (name, short) in enumerate(short_names(names).items()):
        of_layers = {n: float(row[i]) for n, row in weights.items() if not np.isnan(row[i])}
        models.append(
            ModelTotals(
                name=name,
                short=short,
                totals={quantity: float(values[i]) for quantity, values in known.items()},
                problems=sum(tensor.problems for tensor in weighed(merged, i)),
                rejected=sum(int(tensor.rejected[i]) for tensor in merged),
                layer_weights=of_layers,
                followed=[layer for layer, value in of_layers.items() if value >= FOLLOWED],
                ignored=[layer for layer, value in of_layers.items() if value < IGNORED],
            )
        )
    return models


def _parameters(record: Record) -> dict[str, str]:
    values: dict[str, dict[Scalar, None]] = {}
    for tensor in record.tensors:
        for option, value in (record.header.parameters | tensor.parameters).items():
            values.setdefault(option, {})[value] = None
    for option, value in record.header.parameters.items():
        values.setdefault(option, {value: None})
    return {
        option: " | ".join(str(value) for value in list(found)[:4])
        + (f" | ... ({len(found)} values)" if len(found) > 4 else "")
        for option, found in sorted(values.items())
    }


def _warnings(
    record: Record, merged: Sequence[TensorStatistics], models: Sequence[ModelTotals]
) -> list[str]:
    found = []
    done, missing = len(record.tensors), record.missing
    if missing:
        found.append(f"The merge did not finish: {done} of {done + missing} tensors are recorded.")
    if record.truncated:
        found.append("The last line of the record was cut off by a crash and is left out.")
    for i, model in enumerate(models):
        own = weighed(merged, i)
        whole = sum(tensor.rejected[i] == tensor.problems for tensor in own)
        part = sum(0 < tensor.rejected[i] < tensor.problems for tensor in own)
        if whole:
            found.append(f"{model.short} was rejected in {whole} of {len(own)} tensors.")
        if part:
            found.append(
                f"{model.short} was rejected in some experts of {part} of {len(own)} tensors."
            )
    restores_mean = record.header.parameters.get("rescale") == "mean"
    found += odd_sizes(merged, [model.short for model in models], restores_mean=restores_mean)
    sentences: dict[FindingKind, str] = {
        "identical": "All inputs were identical in {} of {} tensors.",
        "not_converged": "The center did not converge in {} of {} tensors.",
        "alone": "Too few inputs to recall from (less than three that differ) in {} of {} tensors: "
        "those are plain averages.",
    }
    for kind, sentence in sentences.items():
        if count := count_found(merged, kind):
            found.append(sentence.format(count, len(merged)))
    return found
