"""What the two pictures share: a panel a task, all of one family on one scale, the mean set apart.

Scores that are a share of right answers are one family: 0.1 is as long in each of their panels,
wherever it begins, so that a gap that looks twice as wide is twice as wide. Another metric is a
family of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.install import install_line
from mergekit_yoyo.scores.results import UNSTATED
from mergekit_yoyo.scores.statistics import is_share
from mergekit_yoyo.scores.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Z_95 = 1.959964  # standard deviations of a normal error within which 95 % lie
INK, QUIET, FAINT, MEAN_GROUND = "#333333", "#777777", "#e4e4e4", "#f3f1ea"
_DPI = 160
_LETTERS_PER_INCH = 15  # of the footer
_MOST_ACROSS = 4  # panels in a line
_MARGIN = 0.06  # of a scale, beyond the outermost interval
_LEAST_SPAN = 0.02  # of shares: less is noise


@dataclass(frozen=True)
class Panel:
    """A column to be drawn: `cells` has one of each row, None where it has no score."""

    title: str
    metric: str
    cells: Sequence[Cell | None]
    family: str
    apart: bool = False

    def interval(self, cell: Cell) -> tuple[float, float]:
        """The 95 % interval of a score; the score itself where its error is not known."""
        reach = Z_95 * (cell.stderr or 0.0)
        low, high = cell.value - reach, cell.value + reach
        return (max(low, 0.0), min(high, 1.0)) if self.family == "share" else (low, high)


def panels_of(table: Table) -> list[Panel]:
    """A panel for each task and, where there is one, for the mean.

    Raises:
        YoyoError: the table has no task.
    """
    if not table.columns:
        raise YoyoError("a picture of scores needs a task; these results have none.")
    panels = []
    for column in table.columns:
        metric = "metric not stated" if column.metric == UNSTATED else column.metric
        metric += " (lower is better)" if column.lower_is_better else ""
        family = "share" if is_share(column.metric) else column.metric
        cells = [row.cells.get(column.task) for row in table.rows]
        panels.append(Panel(column.task, metric, cells, family))
    if table.has_mean:
        cells = [row.mean for row in table.rows]
        panels.append(Panel("mean", f"of {len(table.columns)} tasks", cells, "share", apart=True))
    return panels


def limits_of(panels: Sequence[Panel]) -> list[tuple[float, float]]:
    """The ends of each panel's scale: as far apart in all panels of a family."""
    ends = []
    for panel in panels:
        intervals = [panel.interval(cell) for cell in panel.cells if cell]
        ends.append((min(low for low, _ in intervals), max(high for _, high in intervals)))
    spans: dict[str, float] = {}
    for panel, (low, high) in zip(panels, ends, strict=True):
        least = _LEAST_SPAN if panel.family == "share" else 0.01 * abs(high) or 1.0
        spans[panel.family] = max(spans.get(panel.family, least), high - low)
    limits = []
    for panel, (low, high) in zip(panels, ends, strict=True):
        reach = spans[panel.family] * (0.5 + _MARGIN)
        limits.append(((low + high) / 2 - reach, (low + high) / 2 + reach))
    return limits


def draw_grid(
    panels: Sequence[Panel],
    *,
    title: str,
    footer: Sequence[str],
    panel_inches: tuple[float, float],
    left_inches: float,
    share: str,
) -> tuple["Figure", list["Axes"]]:
    """A figure with an axis for each panel, in lines; the mean to the right, on its own ground.

    Args:
        panels: as from `panels_of`.
        title: stands above all.
        footer: lines below all; long ones are broken.
        panel_inches: width and height of a panel.
        left_inches: room for labels beside the first panel of a line.
        share: which axis all panels share: `x` or `y`.

    Raises:
        YoyoError: matplotlib (extra `report`) is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise YoyoError(f"a PNG needs matplotlib: {install_line('report')}") from error
    tasks = [panel for panel in panels if not panel.apart]
    apart = len(panels) - len(tasks)
    across = _across(panels)
    lines = -(-len(tasks) // across)
    width = left_inches + panel_inches[0] * (across + 1.12 * apart)
    broken = [part for line in footer for part in wrap(line, int(_LETTERS_PER_INCH * width))]
    height = lines * panel_inches[1] + 0.17 * len(broken) + 0.75
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color="#111111")
    figure.supxlabel("\n".join(broken), fontsize=8, x=0.012, ha="left", color=QUIET)
    grid = figure.add_gridspec(
        lines, across + 2 * apart, width_ratios=[1.0] * across + [0.12, 1.0] * apart
    )
    axes: list[Axes] = []
    for number, panel in enumerate(panels):
        place = (0, across + 1) if panel.apart else divmod(number, across)
        shared: dict[str, Any] = {f"share{share}": axes[0]} if axes else {}
        axis = figure.add_subplot(grid[place], **shared)
        axis.set_title(panel.title, fontsize=9.5, fontweight="bold", color=INK, pad=16)
        axis.annotate(
            panel.metric,
            (0.5, 1.0),
            (0, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=QUIET,
        )
        axis.set_facecolor(MEAN_GROUND if panel.apart else "white")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#bbbbbb")
        axis.tick_params(labelsize=8, color="#bbbbbb", labelcolor=INK)
        axes.append(axis)
    return figure, axes


def _across(panels: Sequence[Panel]) -> int:
    """How many panels stand in a line, so that lines are about as long."""
    tasks = sum(not panel.apart for panel in panels)
    lines = -(-tasks // _MOST_ACROSS)
    return -(-tasks // lines)


def is_first_of_line(number: int, panels: Sequence[Panel]) -> bool:
    """Whether a panel stands at the left, where labels do."""
    return number % _across(panels) == 0 and not panels[number].apart


def scale_note(panels: Sequence[Panel], limits: Sequence[tuple[float, float]]) -> str:
    """How wide the shared scale is, in words; empty where nothing is shared."""
    shares = [ends for panel, ends in zip(panels, limits, strict=True) if panel.family == "share"]
    if len(shares) < 2:
        return ""
    low, high = shares[0]
    return f"one scale: every panel of right answers spans {high - low:.2f}; none begins at zero"


def to_png(figure: "Figure") -> bytes:
    """The picture as a file."""
    png = BytesIO()
    figure.savefig(png, dpi=_DPI, format="png")
    return png.getvalue()
