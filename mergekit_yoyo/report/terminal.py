"""The summary and the comparison for the terminal (rich), readable at 80 columns."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from mergekit_yoyo.record.findings import IGNORED
from mergekit_yoyo.record.quantities import RECALLED, WEIGHT, fixed, number
from mergekit_yoyo.record.statistics import TensorStatistics
from mergekit_yoyo.report.colors import CROSS
from mergekit_yoyo.report.compare import RecordComparison
from mergekit_yoyo.report.summary import FOLLOWED, ModelTotals, Summary, ranges

_SHOWN = 8  # tensors in a list
_BLOCKS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_BAR = 8
_MAX_COLUMNS = 4  # models side by side with the names of tensors
_RECALLED = f"{RECALLED.title}: {RECALLED.meaning}."
_NAMES_WIDTH = 36  # of all names side by side; longer ones get numbers


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
        Text(options, style="dim"),
        *([Text(summary.recall)] if summary.recall else []),
        *(Text(f"Warning: {warning}", style="bold yellow") for warning in summary.warnings),
        _models(summary),
        _legend(" ".join(f"{each.title}: {each.meaning}." for each in summary.quantities)),
    ]
    if any(model.layer_weights for model in summary.models):
        parts += [
            _layers(summary.models),
            _legend(f"followed: mean weight of at least {FOLLOWED:g}; ignored: below {IGNORED:g}."),
        ]
    parts += [
        _distances(summary),
        _legend("distances: 0 the same weights, 1.41 unrelated ones, 2 opposite ones."),
    ]
    if summary.contested:
        parts += [
            _contested(summary),
            _legend(
                "disagreement: distance from the center of the inputs that are listened to (RMS, "
                "by weight)."
            ),
        ]
    return Group(*parts)


def render_comparison(comparison: RecordComparison) -> RenderableType:
    """Two merges of the same inputs: options, weights by model, kind, layer and tensor."""
    names = _marks([model.short for model in comparison.models])
    parts: list[RenderableType] = [
        Text(f"A {comparison.a.path}\nB {comparison.b.path}", style="bold"),
        Text(f"{len(comparison.changes):,} tensors compared", style="dim"),
    ]
    options = Table("option", "A", "B", _right("tensors"), box=SIMPLE_HEAD, pad_edge=False)
    for option in comparison.options:
        options.add_row(option.name, option.a, option.b, f"{option.tensors:,}")
    parts.append(options if comparison.options else Text("the same options in every tensor"))
    parts += [Text(f"Warning: {text}", style="bold yellow") for text in comparison.warnings]
    recalled = not all(
        math.isnan(model.recalled_a) and math.isnan(model.recalled_b) for model in comparison.models
    )
    more = ["recalled A", "B"] if recalled else []
    totals = _table("model", "weight A", "B", "|change|", "rejected A", "B", *more)
    for mark, model in zip(names, comparison.models, strict=True):
        back = [number(model.recalled_a), number(model.recalled_b)] if recalled else []
        totals.add_row(
            _label(mark, model.short),
            fixed(model.a),
            fixed(model.b),
            fixed(model.change),
            f"{model.rejected_a:,}",
            f"{model.rejected_b:,}",
            *back,
        )
    parts += [
        totals,
        _legend(
            "change: B's weight less A's, its size averaged over all elements."
            + (f" {_RECALLED}" if recalled else "")
        ),
    ]
    if not comparison.largest:
        return Group(*parts, Text("no weight differs beyond the record's six digits"))
    shown = names[:_MAX_COLUMNS]
    for title, rows in (("module kind", comparison.kinds), ("layer", comparison.layers)):
        if rows:
            table = _table(title, *shown)
            for place, change in rows.items():
                table.add_row(str(place), *map(_signed, change[: len(shown)]))
            parts += [table, _legend(f"mean change of the weight by {title}.")]
    largest = _table("most changed tensors", *shown)
    for changed in comparison.largest[:_SHOWN]:
        largest.add_row(
            Text(changed.name.removesuffix(".weight")), *map(_signed, changed.change[: len(shown)])
        )
    parts.append(largest)
    if len(names) > len(shown):
        parts.append(_legend(f"shown for the first {len(shown)} models."))
    return Group(*parts)


def _models(summary: Summary) -> Table:
    models = summary.models
    weight, *others = [quantity.title for quantity in summary.quantities]
    table = Table("model", weight, box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].overflow = "fold"
    for title in ("rejected in", *others):
        table.add_column(title, justify="right")
    marks = _marks([model.short for model in models])
    for mark, model in zip(marks, models, strict=True):
        share = f" ({model.rejected / model.problems:.1%})" if model.rejected else ""
        weight, *others = [quantity.text(value) for quantity, value in model.totals.items()]
        table.add_row(
            _label(mark, model.short),
            f"{weight} {_bar(model.weight)}",
            f"{model.rejected:,} of {model.problems:,}{share}" if model.problems else "not weighed",
            *others,
        )
    return table


def _layers(models: Sequence[ModelTotals]) -> Table:
    marks = _marks([model.short for model in models])
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
    marks = _marks([model.short for model in summary.models])
    table = _table("distances", *marks)
    for i, mark in enumerate(marks):
        row = ["-" if i == j else number(gap) for j, gap in enumerate(summary.gaps[i].tolist())]
        table.add_row(Text(mark), *row)
    return table


def _contested(summary: Summary) -> Table:
    shown = _marks([model.short for model in summary.models])[:_MAX_COLUMNS]
    title = "disagreement" if len(shown) < _MAX_COLUMNS else "disagr."
    table = _table("most contested tensors", title, *shown)
    for tensor in summary.contested[:_SHOWN]:
        weights = map(fixed, WEIGHT.of_tensor(tensor)[: len(shown)])
        table.add_row(_place(tensor), number(tensor.disagreement), *weights)
    return table


def _marks(names: Sequence[str]) -> list[str]:
    """The names, if they fit side by side, else numbers, which the table of the models explains."""
    if sum(len(name) + 3 for name in names) <= _NAMES_WIDTH:
        return list(names)
    return [f"[{number}]" for number in range(1, len(names) + 1)]


def _label(mark: str, name: str) -> Text:
    return Text(name if mark == name else f"{mark} {name}")


def _place(tensor: TensorStatistics) -> Text:
    layer, kind = tensor.place
    return Text(kind if layer is None else f"{layer} {kind}")


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(Text(name), justify="right", overflow="fold")
    return table


def _right(title: str) -> Column:
    return Column(title, justify="right")


def _legend(text: str) -> Text:
    return Text(text + "\n", style="dim")


def _signed(value: float) -> str:
    # a change that rounds to zero has no sign
    return "-" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}"


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
