"""What the maps of page and picture show, by layer and kind of module, and in which colors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mergekit_yoyo.record.grid import Grid, grid
from mergekit_yoyo.record.quantities import DISTANCE, RECALLED, WEIGHT, Quantity
from mergekit_yoyo.rejection import REJECTED
from mergekit_yoyo.report import colors
from mergekit_yoyo.report.colors import Palette
from mergekit_yoyo.report.compare import MOVING, Move
from mergekit_yoyo.report.scales import (
    OF_DISTANCES,
    OF_WEIGHTS,
    Scale,
    around_zero,
    from_zero,
    stretched,
)
from mergekit_yoyo.report.summary import Summary

_PALETTES = {
    WEIGHT: (colors.WEIGHTS, colors.WEIGHT_CHANGES),
    DISTANCE: (colors.DISTANCES, colors.DISTANCE_CHANGES),
    RECALLED: (colors.RECALLED, colors.RECALL_CHANGES),
}
_KEYS = {WEIGHT: "weights", DISTANCE: "distances", RECALLED: "recalled"}
_ENDS = {
    WEIGHT: ("rejected", "full trust"),
    DISTANCE: ("same", "unrelated"),
    RECALLED: ("nothing", "all of its own"),
}
_CHANGED = {WEIGHT: ("less", "more"), DISTANCE: ("nearer", "farther"), RECALLED: ("less", "more")}


@dataclass(frozen=True)
class Map:
    """A quantity over the model, or its change from one merge to another.

    key: one word. note: what is shown. scales: the full one, and the stretched one if there is any.
    ends: what the first and the last color of the full scale mean. percent: numbers are shown in %.
    signed: they are changes. grid: what is shown; sides: of a change, what it was and what it is.
    """

    key: str
    quantity: Quantity
    note: str
    grid: Grid
    palette: Palette
    scales: tuple[Scale, ...]
    ends: tuple[str, str]
    sides: tuple[Grid, Grid] | None = None

    @property
    def percent(self) -> bool:
        return self.quantity == DISTANCE

    @property
    def signed(self) -> bool:
        return self.sides is not None

    def scale(self, stretch: bool) -> Scale:
        """The stretched scale, if that is wanted and there is one; else the full one."""
        return self.scales[-1] if stretch else self.scales[0]

    def label(self, value: float) -> str:
        """A number on the legend."""
        shown = f"{100 * value:.3g} %" if self.percent else f"{value:.3g}"
        return f"+{shown}" if self.signed and value > 0 else shown

    def written(self, value: float) -> str:
        """A number in a cell, as short as it can be; a change that rounds to zero has no sign."""
        digits = 2
        if self.percent:
            value *= 100
            digits = int(abs(value) < 9.95) + int(self.signed and self.scales[0].high < 0.02)
        text = f"{value:+.{digits}f}" if self.signed else f"{value:.{digits}f}"
        return "0" if not float(text) else text.replace("0.", ".", 1) if abs(value) < 1 else text


def summary_maps(summary: Summary) -> list[Map]:
    """The maps of one merge: weights, distances, and what recall gave back if it was used."""
    models = len(summary.models)
    grids = {WEIGHT: summary.weights, DISTANCE: summary.distances}
    if RECALLED in summary.quantities:
        grids[RECALLED] = grid(summary.tensors, models, RECALLED)
    return [_map(quantity, found) for quantity, found in grids.items()]


def _map(quantity: Quantity, found: Grid) -> Map:
    known = found.known
    # a cross marks the rejected ones: the colors are for the others
    span = stretched(known[known >= REJECTED] if quantity == WEIGHT else known)
    full = {WEIGHT: OF_WEIGHTS, DISTANCE: OF_DISTANCES}.get(quantity) or from_zero(known)
    return Map(
        key=_KEYS[quantity],
        quantity=quantity,
        note=f"{quantity.title.capitalize()}: {quantity.meaning}.",
        grid=found,
        palette=_PALETTES[quantity][0],
        scales=(full, span) if span else (full,),
        ends=_ENDS[quantity],
    )


def comparison_maps(moves: dict[Quantity, Move]) -> list[Map]:
    """The maps of what moved from one merge to another."""
    return [
        Map(
            key=_KEYS[quantity],
            quantity=quantity,
            note=f"Change of the {MOVING[quantity]} from A to B ({quantity.meaning}).",
            grid=difference(move.a, move.b),
            palette=_PALETTES[quantity][1],
            scales=(around_zero(difference(move.a, move.b).known),),
            ends=_CHANGED[quantity],
            sides=(move.a, move.b),
        )
        for quantity, move in moves.items()
    ]


def difference(a: Grid, b: Grid) -> Grid:
    """b less a, cell by cell; they are of the same tensors."""
    return replace(
        a,
        values=np.asarray(b.values - a.values),
        outside_values=np.asarray(b.outside_values - a.outside_values),
    )


def drawn_models(found: Sequence[Map]) -> list[int]:
    """Models with anything to draw: not an anchor that was not weighed."""
    grids = [each.grid for each in found]
    count = len(grids[0].outside_values) if grids else 0
    return [
        m
        for m in range(count)
        if any(
            (~np.isnan(g.values[m])).any() or (~np.isnan(g.outside_values[m])).any() for g in grids
        )
    ]
