"""Heat maps as a PNG, for a model card: of one merge, or of what changed from one to another."""

from dataclasses import dataclass
from io import BytesIO
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.install import install_line
from mergekit_yoyo.record.quantities import WEIGHT
from mergekit_yoyo.rejection import REJECTED
from mergekit_yoyo.report.colors import CROSS, INK, readable_on, shade
from mergekit_yoyo.report.compare import RecordComparison
from mergekit_yoyo.report.maps import Map, comparison_maps, drawn_models, summary_maps
from mergekit_yoyo.report.scales import Scale
from mergekit_yoyo.report.summary import Summary
from mergekit_yoyo.report.verdict import comparison_verdict, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WRITTEN_LAYERS = 12  # a cell of a model with at most so many layers holds its number
_CELL, _WIDE_CELL, _LABEL = 0.22, 0.34, 2.1  # inches
_LETTERS_PER_INCH = 12.5
_OUTER_GAP = 0.35  # cells
_MARGIN, _DPI = 0.25, 100  # inches, pixels each
_SOFT = "#586675"


@dataclass(frozen=True)
class _Sheet:
    """title, said: above the panels; footer: below. maps: drawn one under the other. panels: the
    models, and the title of each one's panel in each map."""

    title: str
    said: str
    footer: list[str]
    maps: list[Map]
    models: list[int]
    panels: list[list[str]]
    stretch: bool


def render_picture(summary: Summary, *, stretch: bool = False) -> bytes:
    """Draw what each model weighed, a panel a model; a cross is a rejected input.

    stretch: let the colors span the weights that there are, which the legend says.

    Raises:
        YoyoError: matplotlib (extra `report`) is not installed, or no tensor was merged.
    """
    if not summary.problems:
        raise YoyoError(f"{summary.record.path}: nothing to draw: no tensor was merged.")
    weights = summary_maps(summary)[:1]
    models = drawn_models(weights)
    return _draw(
        _Sheet(
            title=" + ".join(model.short for model in summary.models),
            said=verdict(summary),
            footer=[f"Warning: {warning}" for warning in summary.warnings],
            maps=weights,
            models=models,
            panels=[
                [f"{summary.models[m].short}   {summary.models[m].weight:.2f}" for m in models]
            ],
            stretch=stretch,
        )
    )


def render_comparison_picture(comparison: RecordComparison) -> bytes:
    """Draw how weights, distances and what recall gives back moved, a row of panels each.

    Raises:
        YoyoError: matplotlib (extra `report`) is not installed, or nothing moved.
    """
    maps = comparison_maps(comparison.moves)
    if not maps:
        raise YoyoError(
            f"{comparison.a.path} and {comparison.b.path}: nothing to draw: no weight and no "
            "distance differs."
        )
    models = drawn_models(maps)
    options = "; ".join(f"{o.name}: {o.a} in A, {o.b} in B" for o in comparison.options)
    sides = [record.path for record in (comparison.a, comparison.b)]
    if sides[0].name == sides[1].name:
        names = [f"{path.parent.name}/{path.name}" for path in sides]
    else:
        names = [path.name for path in sides]
    return _draw(
        _Sheet(
            title=" + ".join(m.short for m in comparison.models) + ": what changes from A to B",
            said=comparison_verdict(comparison),
            footer=[
                *(f"Warning: {warning}" for warning in comparison.warnings),
                f"A {names[0]}, B {names[1]}. Options: {options or 'the same'}.",
            ],
            maps=maps,
            models=models,
            panels=[
                [f"{comparison.models[m].short}   {each.quantity.title}" for m in models]
                for each in maps
            ],
            stretch=False,
        )
    )


def _draw(sheet: _Sheet) -> bytes:
    try:
        from matplotlib.figure import Figure
        from PIL import Image
    except ImportError as error:
        raise YoyoError(f"a PNG needs matplotlib: {install_line('report')}") from error
    grid = sheet.maps[0].grid
    layers, kinds = max(1, len(grid.layers)), len(grid.kinds) + len(grid.outside)
    panel = max((_WIDE_CELL if _written(sheet.maps[0]) else _CELL) * layers, 1.6)
    across = max(1, min(len(sheet.models), int((12 - _LABEL) // (panel + 0.15))))
    down = -(-len(sheet.models) // across)
    inches = max(_LABEL + across * (panel + 0.15) + 0.8, 5.5)
    said = wrap(sheet.said, int(0.85 * _LETTERS_PER_INCH * inches))
    notes = [*sheet.footer, *(_note(each, each.scale(sheet.stretch)) for each in sheet.maps)]
    footer = [part for line in notes for part in wrap(line, int(_LETTERS_PER_INCH * inches))]
    head, foot = 0.42 + 0.17 * len(said), 0.15 + 0.15 * len(footer)
    each_height = down * (_CELL * (kinds + _OUTER_GAP * 2) + 0.62)
    figure = Figure(figsize=(inches, head + len(sheet.maps) * each_height + foot))
    ratios = [head, *[each_height] * len(sheet.maps), foot]
    above, *parts, below = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[
        :, 0
    ]
    above.text(0, 1, _plain(sheet.title), va="top", fontsize=12, weight="bold", color=INK)
    above.text(0, 1 - 0.29 / head, _plain("\n".join(said)), va="top", fontsize=8.5, color=INK)
    below.text(0, 0, _plain("\n".join(footer)), va="bottom", fontsize=7, color=_SOFT)
    figure.set_layout_engine("constrained")
    for part, each, titles in zip(parts, sheet.maps, sheet.panels, strict=True):
        axes = part.subplots(down, across, sharey=True, sharex=True, squeeze=False)
        for axis in list(axes.flat)[len(sheet.models) :]:
            axis.set_visible(False)
        for model, title, axis in zip(sheet.models, titles, axes.flat, strict=False):
            axis.set_title(_plain(title), fontsize=9, loc="left", color=INK)
            _draw_panel(axis, each, model, each.scale(sheet.stretch))
        for axis in axes[-1]:
            axis.set_xlabel("layer", fontsize=7, color=_SOFT)
        _draw_legend(part, list(axes.flat), each, each.scale(sheet.stretch))
    drawn, png = BytesIO(), BytesIO()
    figure.savefig(drawn, dpi=_DPI, facecolor="white", bbox_inches="tight", pad_inches=_MARGIN)
    Image.open(drawn).convert("RGB").save(png, format="png", optimize=True)
    return png.getvalue()


def _note(shown: Map, scale: Scale) -> str:
    crossed = f" A rejected input is crossed out ({CROSS})." if shown.key == "weights" else ""
    if shown.signed:
        crossed = ""
    span = f"{shown.label(scale.low)} to {shown.label(scale.high)}"
    spread = f" Colors are stretched over {span}." if scale.stretched else ""
    return shown.note + crossed + spread


def _written(shown: Map) -> bool:
    """Whether the cells within the layers hold their numbers."""
    return len(shown.grid.layers) <= _WRITTEN_LAYERS


def _draw_panel(axis: "Axes", shown: Map, model: int, scale: Scale) -> None:
    """One model's cells: a row for each kind; what lies outside of the layers is as wide as all."""
    from matplotlib.patches import Rectangle

    grid = shown.grid
    layers, before = max(1, len(grid.layers)), grid.before
    kinds = [*grid.outside[:before], *grid.kinds, *grid.outside[before:]]
    outside = [[value] for value in grid.outside_values[model]]
    values = [*outside[:before], *([*line] for line in grid.values[model]), *outside[before:]]
    inner = range(before, before + len(grid.kinds))
    rows = [i + _OUTER_GAP * ((i >= inner.start) + (i >= inner.stop)) for i in range(len(kinds))]
    for i, (row, line) in enumerate(zip(rows, values, strict=True)):
        width = 1 if i in inner else layers
        for column, value in enumerate(line):
            if np.isnan(value):
                continue
            left, color = column * width - 0.5, shade(scale.share(value), shown.palette.light)
            axis.add_patch(
                Rectangle((left, row - 0.5), width, 1, facecolor=color, edgecolor="white", lw=0.6)
            )
            rejected = shown.quantity == WEIGHT and not shown.signed and value < REJECTED
            number = shown.written(value) if _written(shown) or i not in inner else ""
            axis.text(
                left + width / 2,
                row,
                CROSS if rejected else number,
                ha="center",
                va="center_baseline",
                fontsize=6,
                color=readable_on(color),
            )
    axis.set_xlim(-0.5, layers - 0.5)
    axis.set_ylim(rows[-1] + 0.5, -0.5)
    axis.set_yticks(rows, [_plain(kind) for kind in kinds])
    step = 1 if _written(shown) else 4
    axis.set_xticks(range(0, len(grid.layers), step), [str(layer) for layer in grid.layers[::step]])
    axis.tick_params(length=0, labelsize=7, labelcolor=INK)
    axis.spines[:].set_visible(False)


def _draw_legend(figure: Any, axes: "list[Axes]", shown: Map, scale: Scale) -> None:
    """The colors and their numbers, beside all panels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list(shown.key, list(shown.palette.light))
    bar = figure.colorbar(ScalarMappable(cmap=colors), ax=axes, fraction=0.025, aspect=30, pad=0.01)
    bar.set_ticks(
        [scale.share(tick) for tick in scale.ticks], labels=list(map(shown.label, scale.ticks))
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7, labelcolor=INK)
    if scale.stretched:
        bar.ax.set_title("stretched", fontsize=7, color=_SOFT, loc="left")


def _plain(text: str) -> str:
    """`text` without matplotlib's mathematics: a name may hold dollars."""
    return text.replace("$", r"\$")
