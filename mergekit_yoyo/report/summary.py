"""What a merge did, in a few numbers: totals per model, by layer and kind, and what to look at."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from mergekit_yoyo.record.reading import Record
from mergekit_yoyo.record.schema import Kind, Scalar
from mergekit_yoyo.report.grid import Grid, grid, over_elements
from mergekit_yoyo.report.measures import Array, Measures, mean, measure, models_of

FOLLOWED = 0.5  # a model of at least this mean weight in a layer is followed there
IGNORED = 0.1  # one below this is as good as rejected
ODD_SIZE = 2.0  # an input this many times larger or smaller than the others is told


@dataclass(frozen=True)
class ModelTotals:
    """One model in the whole merge.

    name: as in the YAML; short: its last part, if that tells it from the others. weight: mean,
    every element counting once. problems, rejected: in how many tensors (each expert counting for
    one) it took part and was rejected. distance: from the center, RMS. size: its norm in units of
    the inputs' median norm, geometric mean. recalled: how much of its own residual it has back,
    mean over all elements, NaN without recall. An anchor of recall is not weighed: it has no
    problems, and NaN for all these. layer_weights: mean weight by layer; followed, ignored:
    the layers where it is at least FOLLOWED or below IGNORED.
    """

    name: str
    short: str
    weight: float
    problems: int
    rejected: int
    distance: float
    size: float
    recalled: float
    layer_weights: dict[int, float]
    followed: list[int]
    ignored: list[int]


@dataclass(frozen=True)
class Summary:
    """A record, digested. tensors: in order of layers. gaps: [M, M] RMS distances between the
    models. contested: tensors by disagreement, the largest first. passed: tensors of one input.
    warnings: sentences. parameters: option -> value, several if they vary by tensor."""

    record: Record
    tensors: list[Measures]
    models: list[ModelTotals]
    weights: Grid
    distances: Grid
    gaps: Array
    contested: list[Measures]
    passed: int
    parameters: dict[str, str]
    warnings: list[str]

    @property
    def problems(self) -> int:
        return sum(tensor.problems for tensor in self.tensors)

    @property
    def recall(self) -> str:
        """Recall's strength and condition numbers over all tensors; empty without recall."""
        lines = [tensor.line for tensor in self.tensors]
        strengths = [beta for line in lines for beta in line.strength or [] if beta is not None]
        bounds = [c for line in lines for c in line.condition_number or [] if c is not None]
        if not strengths:
            return ""
        low, high = f"{min(strengths):.2f}", f"{max(strengths):.2f}"
        said = f"Recall: strength {low}" + (f" to {high}" if high != low else "")
        return said + (f", condition numbers below {max(bounds):,.0f}" if bounds else "") + "."


def summarize(record: Record) -> Summary:
    """Digest a record; see `Summary`."""
    tensors = measure(record)
    merged = [tensor for tensor in tensors if tensor.problems]
    names = models_of(record)
    weights = grid(tensors, len(names), lambda tensor: tensor.weight)
    squares = grid(tensors, len(names), lambda tensor: tensor.distance**2)
    models = [_totals(merged, i, name) for i, name in enumerate(short_names(names).items())]
    return Summary(
        record=record,
        tensors=tensors,
        models=models,
        weights=weights,
        distances=Grid(
            squares.kinds,
            squares.layers,
            np.sqrt(squares.values),
            squares.outside,
            np.sqrt(squares.outside_values),
        ),
        gaps=np.sqrt(over_elements(merged, lambda t: mean(t.gaps**2, axis=0), (len(names),) * 2)),
        contested=sorted(merged, key=lambda t: -np.nan_to_num(t.disagreement)),
        passed=len(tensors) - len(merged),
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


def _totals(merged: Sequence[Measures], model: int, name: tuple[str, str]) -> ModelTotals:
    own = [tensor for tensor in merged if not np.isnan(tensor.weights[:, model]).all()]
    by_layer: dict[int, list[Measures]] = defaultdict(list)
    for tensor in own:
        if tensor.place.layer is not None:
            by_layer[tensor.place.layer].append(tensor)

    def average(value: Callable[[Measures], Array], tensors: Sequence[Measures] = own) -> float:
        """Of a quantity [M], for this model."""
        return float(over_elements(tensors, lambda t: value(t)[model : model + 1], (1,))[0])

    layer_weights = {
        layer: average(lambda t: t.weight, tensors) for layer, tensors in sorted(by_layer.items())
    }
    return ModelTotals(
        name=name[0],
        short=name[1],
        weight=average(lambda t: t.weight),
        problems=sum(tensor.problems for tensor in own),
        rejected=sum(int(tensor.rejected[model]) for tensor in own),
        distance=float(np.sqrt(average(lambda t: t.distance**2))),
        size=float(np.exp(average(lambda t: t.log_size))),
        recalled=average(lambda t: mean(t.recalled, axis=0)),
        layer_weights=layer_weights,
        followed=[layer for layer, value in layer_weights.items() if value >= FOLLOWED],
        ignored=[layer for layer, value in layer_weights.items() if value < IGNORED],
    )


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
    record: Record, merged: Sequence[Measures], models: Sequence[ModelTotals]
) -> list[str]:
    found = []
    done, missing = len(record.tensors), record.missing
    restores_mean = record.header.parameters.get("rescale") == "mean"
    if missing:
        found.append(f"The merge did not finish: {done} of {done + missing} tensors are recorded.")
    if record.truncated:
        found.append("The last line of the record was cut off by a crash and is left out.")
    for i, model in enumerate(models):
        own = [tensor for tensor in merged if not np.isnan(tensor.weights[:, i]).all()]
        whole = sum(tensor.rejected[i] == tensor.problems for tensor in own)
        part = sum(0 < tensor.rejected[i] < tensor.problems for tensor in own)
        if whole:
            found.append(f"{model.short} was rejected in {whole} of {len(own)} tensors.")
        if part:
            found.append(
                f"{model.short} was rejected in some experts of {part} of {len(own)} tensors."
            )
        if own and not 1 / ODD_SIZE <= model.size <= ODD_SIZE:
            remedy = "; rescale: median keeps that out of the merge" if restores_mean else ""
            found.append(
                f"The weights of {model.short} are {model.size:.3g} times as large as the median "
                f"input's{remedy}."
            )
    sentences: dict[Kind, str] = {
        "identical": "All inputs were identical in {} of {} tensors.",
        "not_converged": "The center did not converge in {} of {} tensors.",
        "alone": "Too few inputs to recall from (less than three that differ) in {} of {} tensors: "
        "those are plain averages.",
    }
    for kind, sentence in sentences.items():
        count = sum(any(w.kind == kind for w in tensor.line.warnings) for tensor in merged)
        if count:
            found.append(sentence.format(count, len(merged)))
    return found
