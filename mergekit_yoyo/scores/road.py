"""The road of versions: how a line of models went, task by task, in each of its quantizations.

A row's version and quantization are told by its name, `VERSION-QUANTIZATION` (`V5-qx86-hi`), or by
what its result records of the quantization.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.scores.panels import (
    FAINT,
    QUIET,
    draw_grid,
    is_first_of_line,
    limits_of,
    panels_of,
    scale_note,
    to_png,
)
from mergekit_yoyo.scores.results import ModelResult
from mergekit_yoyo.scores.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTIZED = re.compile(
    r"(?P<version>.+?)[-_. ](?P<quantization>"
    r"((q|qx|mxfp|nvfp|bf|fp|f|int|w)\d+\w*|\d+-?bit|(gptq|awq|dwq|auto|bfloat16|float16)\w*)"
    r"(-hi|-mlx|-g\d+)*)",
    re.IGNORECASE,
)
# Of Okabe and Ito: told apart by everyone, and in gray.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333", "#f0e442")
_MARKERS = "osD^vP*X"
_DODGE = 0.13  # of a version's room, between two quantizations


@dataclass(frozen=True)
class Stop:
    """Where a row stands on the road."""

    version: str
    quantization: str


def stop_of(result: ModelResult) -> Stop:
    """Version and quantization of a row; without either in its name, those its result records."""
    if match := _QUANTIZED.fullmatch(result.name):
        return Stop(match["version"], match["quantization"])
    return Stop(result.name, result.quantization or "as published")


def render_road(table: Table) -> bytes:
    """The picture of `draw_road` as a file.

    Raises:
        YoyoError: as for `draw_road`.
    """
    return to_png(draw_road(table))


def draw_road(table: Table) -> "Figure":
    """Draw each task's scores over the versions, in the order of the rows, a line a quantization.

    Raises:
        YoyoError: fewer than two versions, two rows at one stop, or no matplotlib.
    """
    stops = [stop_of(row.result) for row in table.rows]
    for number, stop in enumerate(stops):
        if stop in stops[:number]:
            names = [row.result.name for row in table.rows]
            raise YoyoError(
                f"{names[stops.index(stop)]} and {names[number]} are both version {stop.version}, "
                f"{stop.quantization}. Name them VERSION-QUANTIZATION, with --name OLD=NEW."
            )
    versions = list(dict.fromkeys(stop.version for stop in stops))
    if len(versions) < 2:
        raise YoyoError(
            f"a road needs two versions; got {versions[0]} only. Rows are told apart by names such "
            "as V4-qx86-hi and V5-qx86-hi; rename with --name OLD=NEW."
        )
    quantizations = list(dict.fromkeys(stop.quantization for stop in stops))
    panels = panels_of(table)
    limits = limits_of(panels)
    footer = [f"Warning: {warning}" for warning in table.warnings]
    footer += ["bar: 95 % interval; dashed: a version without this quantization lies between"]
    footer += [scale_note(panels, limits), *table.setup_notes]
    family, labels = _labels(versions)
    longest = max(map(len, labels))
    figure, axes = draw_grid(
        panels,
        title=f"{f'{family}: the' if family else 'The'} road from {labels[0]} to {labels[-1]}",
        footer=footer,
        panel_inches=(max(2.0, 0.5 + (0.3 + 0.065 * longest) * len(versions)), 2.3),
        left_inches=0.5,
        share="x",
    )
    for number, (panel, (low, high), axis) in enumerate(zip(panels, limits, axes, strict=True)):
        axis.set_ylim(low, high)
        axis.grid(axis="y", color=FAINT, linewidth=0.8)
        axis.tick_params(axis="x", length=0)
        for order, quantization in enumerate(quantizations):
            shift = _DODGE * (order - (len(quantizations) - 1) / 2)
            points = {
                versions.index(stop.version): cell
                for stop, cell in zip(stops, panel.cells, strict=True)
                if stop.quantization == quantization and cell
            }
            color, marker = _color(order), _marker(order)
            for place, cell in points.items():
                if cell.stderr is not None:
                    ends = panel.interval(cell)
                    axis.vlines(place + shift, *ends, color=color, linewidth=1, alpha=0.55)
            _draw_line(axis, {p: c.value for p, c in points.items()}, shift, color, marker)
        if is_first_of_line(number, panels):
            axis.set_ylabel("score", fontsize=8, color=QUIET)
    axes[0].set_xticks(range(len(versions)), labels)
    axes[0].set_xlim(-0.45, len(versions) - 0.55)
    handles = [
        axes[0].plot([], [], color=_color(order), marker=_marker(order), markersize=5)[0]
        for order in range(len(quantizations))
    ]
    figure.legend(
        handles,
        quantizations,
        loc="outside upper right",
        ncols=4,
        frameon=False,
        fontsize=8.5,
    )
    return figure


def _labels(versions: list[str]) -> tuple[str, list[str]]:
    """What the names of all versions begin with, up to a hyphen or the like, and the rests."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*versions, strict=False))
    common = re.match(r".*[-_. ]", "".join(letters[0] for letters in alike))
    length = common.end() if common else 0
    return versions[0][:length].rstrip("-_. "), [version[length:] for version in versions]


def _draw_line(
    axis: "Axes", values: Mapping[int, float], shift: float, color: str, marker: str
) -> None:
    """Points, and a line from each to the next: dashed where it passes a version over."""
    places = sorted(values)
    for begin, end in pairwise(places):
        axis.plot(
            [begin + shift, end + shift],
            [values[begin], values[end]],
            color=color,
            linewidth=1.6,
            linestyle="-" if end == begin + 1 else (0, (3, 2)),
        )
    axis.plot(
        [p + shift for p in places],
        [values[p] for p in places],
        marker,
        color=color,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.6,
    )


def _color(order: int) -> str:
    return _COLORS[order % len(_COLORS)]


def _marker(order: int) -> str:
    return _MARKERS[order % len(_MARKERS)]
