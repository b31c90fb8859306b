"""The summary of a merge for the terminal (rich), readable at 80 columns."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mergekit_yoyo.record.findings import IGNORED
from mergekit_yoyo.record.quantities import WEIGHT, fixed, percent
from mergekit_yoyo.report.colors import CROSS
from mergekit_yoyo.report.summary import FOLLOWED, ModelTotals, Summary, ranges
from mergekit_yoyo.report.tables import (
    MOST_COLUMNS,
    SHOWN,
    label,
    legend,
    marks_of,
    place_text,
    table_of,
)
from mergekit_yoyo.report.verdict import verdict

_BLOCKS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_BAR = 8


def render_summary(summary: Summary) -> RenderableType:
    """What a merge did: totals, layers, distances, contested tensors, warnings."""
    header = summary.record.header
    base = f", base {header.base}" if header.base else ""
    counts = f"{len(summary.tensors):,} tensors"
    if summary.problems > len(summary.tensors):
        counts += f", {summary.problems:,} merges (experts one by one)"
    if summary.passed:
        counts += f", {summary.passed:,} passed through from a single input"
    options = ", ".join(f"{name}: {value}" for name, value in summary.parameters.items())
    parts: list[RenderableType] = [
        Text(f"{summary.record.path}: {len(summary.models)} models{base}, {counts}", style="bold"),
        Text(verdict(summary)),
        Text(options, style="dim"),
        *(Text(said) for said in (summary.recall, summary.rounding) if said),
        *(Text(f"Warning: {warning}", style="bold yellow") for warning in summary.warnings),
        _models(summary),
        legend(" ".join(f"{each.title}: {each.meaning}." for each in summary.quantities)),
    ]
    if any(model.layer_weights for model in summary.models):
        parts += [
            _layers(summary.models),
            legend(f"followed: mean weight of at least {FOLLOWED:g}; ignored: below {IGNORED:g}."),
        ]
    parts += [
        _distances(summary),
        legend("distances: 0 % the same weights, 141 % unrelated ones, 200 % opposite ones."),
    ]
    if summary.contested:
        parts += [
            _contested(summary),
            legend(
                "disagreement: distance from the center of the inputs that are listened to (RMS, "
                "by weight)."
            ),
        ]
    return Group(*parts)


def _models(summary: Summary) -> Table:
    models = summary.models
    weight, *others = [quantity.title for quantity in summary.quantities]
    table = Table("model", weight, box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].overflow = "fold"
    for title in ("rejected in", *others):
        table.add_column(title, justify="right")
    marks = marks_of([model.short for model in models])
    for mark, model in zip(marks, models, strict=True):
        share = f" ({model.rejected / model.problems:.1%})" if model.rejected else ""
        weight, *others = [quantity.text(value) for quantity, value in model.totals.items()]
        table.add_row(
            label(mark, model.short),
            f"{weight} {_bar(model.weight)}",
            f"{model.rejected:,} of {model.problems:,}{share}" if model.problems else "not weighed",
            *others,
        )
    return table


def _layers(models: Sequence[ModelTotals]) -> Table:
    marks = marks_of([model.short for model in models])
    layers = sorted({layer for model in models for layer in model.layer_weights})
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column(
        Text(f"weight by layer, {layers[0]} to {layers[-1]}"), overflow="fold", min_width=24
    )
    table.add_column("followed in", overflow="fold")
    table.add_column("ignored in", overflow="fold")
    for mark, model in zip(marks, models, strict=True):
        if not model.layer_weights:
            continue
        strip = "".join(_level(model.layer_weights.get(layer)) for layer in layers)
        parts = (
            "all layers" if numbers == layers else ranges(numbers) or "-"
            for numbers in (model.followed, model.ignored)
        )
        table.add_row(Text(mark), Text(strip), *parts)
    return table


def _distances(summary: Summary) -> Table:
    marks = marks_of([model.short for model in summary.models])
    table = table_of("distances", *marks)
    for i, mark in enumerate(marks):
        row = ["-" if i == j else percent(gap) for j, gap in enumerate(summary.gaps[i].tolist())]
        table.add_row(Text(mark), *row)
    return table


def _contested(summary: Summary) -> Table:
    shown = marks_of([model.short for model in summary.models])[:MOST_COLUMNS]
    title = "disagreement" if len(shown) < MOST_COLUMNS else "disagr."
    table = table_of("most contested tensors", title, *shown)
    for tensor in summary.contested[:SHOWN]:
        weights = map(fixed, WEIGHT.of_tensor(tensor)[: len(shown)])
        table.add_row(place_text(tensor), percent(tensor.disagreement), *weights)
    return table


def _bar(value: float) -> str:
    eighths = 0 if math.isnan(value) else round(max(0.0, min(value, 1.0)) * _BAR * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + _BLOCKS[rest]).strip()


def _level(value: float | None) -> str:
    """One column of a strip: a level for a weight, a cross for an input that is ignored."""
    if value is None or math.isnan(value):
        return " "
    if value < IGNORED:
        return CROSS
    return _LEVELS[min(int(value * len(_LEVELS)), len(_LEVELS) - 1)]
