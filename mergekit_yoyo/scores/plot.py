"""The table as a PNG: for each model a dot and its 95 % interval, one panel a task."""

from typing import TYPE_CHECKING

from mergekit_yoyo.scores.panels import (
    FAINT,
    INK,
    draw_grid,
    is_first_of_line,
    limits_of,
    panels_of,
    scale_note,
    to_png,
)
from mergekit_yoyo.scores.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEST = "#0a7d4f"


def render_png(table: Table) -> bytes:
    """The picture of `draw_table` as a file.

    Raises:
        YoyoError: matplotlib (extra `report`) is not installed.
    """
    return to_png(draw_table(table))


def draw_table(table: Table) -> "Figure":
    """Draw a panel a task, and the mean apart from them.

    Raises:
        YoyoError: as for `render_png`.
    """
    panels = panels_of(table)
    limits = limits_of(panels)
    names = [row.result.name for row in table.rows]
    footer = [f"Warning: {warning}" for warning in table.warnings]
    footer += ["dot: score; bar: 95 % interval; filled green: leads every other row beyond 95 %"]
    footer += [scale_note(panels, limits), *table.setup_notes, *table.lead_notes]
    if beside := dict.fromkeys(column.title for column in table.measures):
        footer.append(f"in the table only: {', '.join(beside)}")
    figure, axes = draw_grid(
        panels,
        title="Benchmark scores",
        footer=footer,
        panel_inches=(2.2, 0.75 + 0.27 * len(names)),
        left_inches=0.35 + 0.075 * max(map(len, names)),
        share="y",
    )
    from matplotlib.ticker import MaxNLocator

    positions = range(len(names))
    for number, (panel, (low, high), axis) in enumerate(zip(panels, limits, axes, strict=True)):
        axis.set_xlim(low, high)
        axis.grid(axis="x", color=FAINT, linewidth=0.8)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0, labelleft=is_first_of_line(number, panels))
        for position, cell in zip(positions, panel.cells, strict=True):
            if cell is None:
                continue
            color = _BEST if cell.best else INK
            if cell.stderr is not None:
                axis.hlines(position, *panel.interval(cell), color=color, linewidth=1.4)
            axis.plot(
                cell.value,
                position,
                "o",
                markersize=5.5,
                color=color,
                markerfacecolor=color if cell.best else "white",
            )
            axis.annotate(
                f"{cell.value:.3f}",
                (1.0, position),
                (3, 0),
                xycoords=axis.get_yaxis_transform(),
                textcoords="offset points",
                va="center",
                fontsize=7,
                color=color,
                fontweight="bold" if cell.best else "normal",
            )
    axes[0].set_yticks(positions, names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure
