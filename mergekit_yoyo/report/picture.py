"""The heat map as a PNG for a model card: what each model weighed, by layer and module kind."""

from io import BytesIO
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.install import install_line
from mergekit_yoyo.record.grid import Grid
from mergekit_yoyo.rejection import REJECTED
from mergekit_yoyo.report.colors import CROSS, INK, LIGHT, is_dark, shade
from mergekit_yoyo.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRITTEN_LAYERS = 12  # a cell of a model with at most so many layers holds its number
_CELL, _LABEL = 0.24, 2.1  # inches
_LETTERS_PER_INCH = 13
_OUTER_GAP = 0.35  # cells


def render_picture(summary: Summary) -> bytes:
    """Draw one panel per model, all on the scale from 0 to 1; a cross is a rejected input.

    Raises:
        YoyoError: matplotlib (extra `report`) is not installed, or no tensor was merged.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise YoyoError(f"a PNG needs matplotlib: {install_line('report')}") from error
    if not summary.problems:
        raise YoyoError(f"{summary.record.path}: nothing to draw: no tensor was merged.")
    grid = summary.weights
    models = [i for i, model in enumerate(summary.models) if model.problems]
    layers, kinds = max(1, len(grid.layers)), len(grid.kinds) + len(grid.outside)
    panel = max((_CELL * 1.4 if _written(grid) else _CELL) * layers, 1.6)
    across = max(1, min(len(models), int((12 - _LABEL) // (panel + 0.15))))
    down = -(-len(models) // across)
    inches = max(_LABEL + across * (panel + 0.15) + 0.7, 4.5)
    footer = [f"Warning: {warning}" for warning in summary.warnings]
    footer.append(f"mean weight in the merge: 1 is full trust, 0 is rejected ({CROSS})")
    lines = [part for line in footer for part in wrap(line, int(_LETTERS_PER_INCH * inches))]
    height = down * (_CELL * (kinds + _OUTER_GAP) + 0.62) + 0.17 * len(lines) + 0.15
    figure = Figure(figsize=(inches, height), layout="constrained")
    axes = figure.subplots(down, across, sharey=True, sharex=True, squeeze=False)
    for axis in list(axes.flat)[len(models) :]:
        axis.set_visible(False)
    for i, axis in zip(models, axes.flat, strict=False):
        model = summary.models[i]
        axis.set_title(
            f"{_plain(model.short)}   {model.weight:.2f}", fontsize=9, loc="left", color=INK
        )
        _draw_panel(axis, grid, i)
    for axis in axes[-1]:
        axis.set_xlabel("layer", fontsize=7, color=INK)
    _draw_scale(figure, list(axes.flat))
    figure.supxlabel(_plain("\n".join(lines)), fontsize=7, x=0.01, ha="left", color=INK)
    png = BytesIO()
    figure.savefig(png, dpi=110, format="png", facecolor="white", pil_kwargs={"optimize": True})
    return png.getvalue()


def _written(grid: Grid) -> bool:
    """Whether the cells within the layers hold their numbers."""
    return len(grid.layers) <= _WRITTEN_LAYERS


def _draw_panel(axis: "Axes", grid: Grid, model: int) -> None:
    """One model's cells: a row for each kind; what lies outside of the layers is as wide as all."""
    from matplotlib.patches import Rectangle

    layers, kinds = max(1, len(grid.layers)), [*grid.kinds, *grid.outside]
    rows = [i + (_OUTER_GAP if i >= len(grid.kinds) else 0.0) for i in range(len(kinds))]
    values = [[*line] for line in grid.values[model]]
    values += [[value] for value in grid.outside_values[model]]
    for row, line in zip(rows, values, strict=True):
        width = layers / max(len(line), 1)
        for column, value in enumerate(line):
            if np.isnan(value):
                continue
            left, color = column * width - 0.5, shade(value)
            axis.add_patch(
                Rectangle((left, row - 0.5), width, 1, facecolor=color, edgecolor="white", lw=0.6)
            )
            number = f"{value:.2f}".lstrip("0") if _written(grid) or len(line) == 1 else ""
            axis.text(
                left + width / 2,
                row,
                CROSS if value < REJECTED else number,
                ha="center",
                va="center_baseline",
                fontsize=6,
                color="white" if is_dark(color) else INK,
            )
    axis.set_xlim(-0.5, layers - 0.5)
    axis.set_ylim(rows[-1] + 0.5, -0.5)
    axis.set_yticks(rows, [_plain(kind) for kind in kinds])
    step = 1 if _written(grid) else 4
    axis.set_xticks(range(0, len(grid.layers), step), [str(layer) for layer in grid.layers[::step]])
    axis.tick_params(length=0, labelsize=7, labelcolor=INK)
    axis.spines[:].set_visible(False)


def _draw_scale(figure: "Figure", axes: "list[Axes]") -> None:
    """The colors from 0 to 1, beside all panels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), LinearSegmentedColormap.from_list("weight", LIGHT)),
        ax=axes,
        fraction=0.02,
        aspect=40,
        pad=0.01,
        ticks=[0, 0.5, 1],
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7, labelcolor=INK)


def _plain(text: str) -> str:
    """`text` without matplotlib's mathematics: a name may hold dollars."""
    return text.replace("$", r"\$")
