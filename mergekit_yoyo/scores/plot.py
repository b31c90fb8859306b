"""The table as a PNG: a dot and its standard error for each model, one panel a task."""

from io import BytesIO
from textwrap import wrap

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.install import install_line
from mergekit_yoyo.scores.table import Cell, Table

_PANELS_PER_LINE = 4
_LETTERS_PER_INCH = 14  # of the footer
_INK, _BEST, _FAINT = "#444444", "#0a7d4f", "#dddddd"


def render_png(table: Table) -> bytes:
    """Draw `table`: axes fit to the scores, not from zero, each with its own scale.

    Raises:
        YoyoError: matplotlib (extra `report`) is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise YoyoError(f"a PNG needs matplotlib: {install_line('report')}") from error
    panels: list[tuple[str, list[Cell | None]]] = []
    for column in table.columns:
        title = f"{column.task}\n{column.metric}"
        title += " (lower is better)" if column.lower_is_better else ""
        panels.append((title, [row.cells.get(column.task) for row in table.rows]))
    if table.has_mean:
        panels.append((f"mean\nof {len(table.columns)} tasks", [row.mean for row in table.rows]))
    width = min(len(panels), _PANELS_PER_LINE)
    height = -(-len(panels) // width)
    names = [row.result.name for row in table.rows]
    inches = 0.08 * max(map(len, names)) + 2.3 * width
    footer = [f"Warning: {warning}" for warning in table.warnings]
    footer += ["bars: ± one standard error; filled green: leads every other row beyond 95 %"]
    footer += table.notes
    lines = [part for line in footer for part in wrap(line, int(_LETTERS_PER_INCH * inches))]
    figure = Figure(
        figsize=(inches, height * (0.9 + 0.28 * len(names)) + 0.19 * len(lines) + 0.2),
        layout="constrained",
    )
    axes = figure.subplots(height, width, sharey=True, squeeze=False)
    positions = range(len(names))
    for panel, ((title, cells), axis) in enumerate(zip(panels, axes.flat, strict=False)):
        axis.set_title(title, fontsize=9)
        axis.grid(axis="x", color=_FAINT, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0, labelsize=9)
        axis.tick_params(axis="x", labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        for position, cell in zip(positions, cells, strict=True):
            if cell is None:
                continue
            color = _BEST if cell.best else _INK
            axis.errorbar(
                cell.value,
                position,
                xerr=cell.stderr,
                fmt="o",
                markersize=6,
                color=color,
                markerfacecolor=color if cell.best else "white",
                elinewidth=1.4,
            )
        if panel % width == 0:
            axis.set_yticks(positions, names)
            axis.set_ylim(len(names) - 0.4, -0.6)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("\n".join(lines), fontsize=8, x=0.01, ha="left", color=_INK)
    png = BytesIO()
    figure.savefig(png, dpi=160, format="png")
    return png.getvalue()
