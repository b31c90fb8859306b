"""The comparison of two merges for the terminal (rich), readable at 80 columns."""

import math
from collections.abc import Iterator

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mergekit_yoyo.record.quantities import DISTANCE, RECALLED, Quantity, fixed, number, percent
from mergekit_yoyo.record.statistics import Array
from mergekit_yoyo.report.compare import MOVING, Move, RecordComparison
from mergekit_yoyo.report.summary import ranges
from mergekit_yoyo.report.tables import (
    MOST_COLUMNS,
    SHOWN,
    label,
    legend,
    marks_of,
    right,
    table_of,
)
from mergekit_yoyo.report.verdict import comparison_verdict

_LAYERS = 12  # lines of a table by layer; of more layers, neighbors share one
_RECALLED = f"{RECALLED.title}: {RECALLED.meaning}."


def render_comparison(comparison: RecordComparison) -> RenderableType:
    """Two merges of the same inputs: YAML, options, then what moved by model, kind and layer."""
    parts: list[RenderableType] = [
        Text(f"A {comparison.a.path}\nB {comparison.b.path}", style="bold"),
        Text(comparison_verdict(comparison)),
        Text(f"{len(comparison.changes):,} tensors compared", style="dim"),
        *(Text(f"Warning: {text}", style="bold yellow") for text in comparison.warnings),
    ]
    if differing := [line for line in comparison.yaml if not line.startswith("  ")]:
        parts.append(Text("\n" + "\n".join(differing)))
    if comparison.options:
        options = Table("option", "A", "B", right("tensors"), box=SIMPLE_HEAD, pad_edge=False)
        for option in comparison.options:
            options.add_row(option.name, option.a, option.b, f"{option.tensors:,}")
        parts.append(options)
    else:
        parts.append(Text("the same options in every tensor"))
    parts += _totals(comparison)
    marks = marks_of([model.short for model in comparison.models])[:MOST_COLUMNS]
    for quantity, move in comparison.moves.items():
        parts += _moved(quantity, move, marks)
    if not comparison.largest:
        return Group(*parts, Text("no weight differs beyond the record's six digits"))
    largest = table_of("most changed tensors", *marks)
    for changed in comparison.largest[:SHOWN]:
        numbers = (_signed(x) for x in changed.change[: len(marks)].tolist())
        largest.add_row(Text(changed.name.removesuffix(".weight")), *numbers)
    parts += [largest, legend("change of the weight.")]
    if len(comparison.models) > len(marks):
        parts.append(legend(f"shown for the first {len(marks)} models."))
    return Group(*parts)


def _totals(comparison: RecordComparison) -> Iterator[RenderableType]:
    models = comparison.models
    recalled = not all(math.isnan(m.recalled_a) and math.isnan(m.recalled_b) for m in models)
    totals = table_of(
        "model",
        *("weight A", "B", "|change|", "rejected A", "B"),
        *(["recalled A", "B"] if recalled else []),
    )
    marks = marks_of([model.short for model in models])
    for mark, model in zip(marks, models, strict=True):
        totals.add_row(
            label(mark, model.short),
            *map(fixed, (model.a, model.b, model.change)),
            *(f"{count:,}" for count in (model.rejected_a, model.rejected_b)),
            *(map(number, (model.recalled_a, model.recalled_b)) if recalled else []),
        )
    yield totals
    yield legend(
        "change: B's weight less A's, its size averaged over all elements."
        + (f" {_RECALLED}" if recalled else "")
    )
    if DISTANCE in comparison.moves:
        distances = table_of("model", "distance A", "B")
        for mark, model in zip(marks, models, strict=True):
            distances.add_row(Text(mark), *map(percent, (model.distance_a, model.distance_b)))
        yield distances
        yield legend(f"{DISTANCE.title}: {DISTANCE.meaning}.")


def _moved(quantity: Quantity, move: Move, marks: list[str]) -> Iterator[RenderableType]:
    """The change of the mean by kind and by layer."""
    said = _points if quantity == DISTANCE else _signed
    rows: list[tuple[str, dict[str, Array]]] = [("module kind", move.kinds)]
    if move.layers:
        rows.append(("layer", _few(move.layers)))
    for title, changes in rows:
        table = table_of(title, *marks)
        for place, change in changes.items():
            table.add_row(place, *map(said, change[: len(marks)].tolist()))
        yield table
        unit = ", in percentage points" if quantity == DISTANCE else ""
        yield legend(f"mean change of the {MOVING[quantity]} by {title}{unit}.")


def _few(layers: dict[int, Array]) -> dict[str, Array]:
    """The layers, neighbors taken together so that there are at most `_LAYERS` lines."""
    numbers, size = list(layers), -(-len(layers) // _LAYERS)
    groups = [numbers[k : k + size] for k in range(0, len(numbers), size)]
    return {ranges(group): np.mean([layers[n] for n in group], axis=0) for group in groups}


def _signed(value: float) -> str:
    # a change that rounds to zero has no sign
    return "-" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}"


def _points(value: float) -> str:
    return "-" if math.isnan(value) else f"{round(100 * value, 2) + 0.0:+.2f}"
