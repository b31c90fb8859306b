"""The colors of maps, from the lowest value to the highest, and what is readable on them.

A quantity has a palette of its own, so that maps of opposite meaning cannot be mixed up: trust is
blue, distance is fire, what recall gives back is violet. All are safe for the color-blind. Maps of
changes run from one color over the background's to another. In the dark they run the other way, so
that little is always close to the background.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Palette(NamedTuple):
    """Evenly spaced colors, #rrggbb, on a light and on a dark background."""

    light: tuple[str, ...]
    dark: tuple[str, ...]


WEIGHTS = Palette(  # ColorBrewer's YlGnBu
    ("#fbf8e3", "#c7e6bd", "#5bbcc0", "#2a74b2", "#122a63"),
    ("#161f33", "#22477f", "#2f86ab", "#7fcbb6", "#f3f3c8"),
)
DISTANCES = Palette(  # after its OrRd
    ("#fdf5ea", "#fbd7a4", "#f29c5b", "#cc5034", "#701a1f"),
    ("#271c18", "#633122", "#ab542c", "#e6974f", "#fde6bd"),
)
RECALLED = Palette(  # its Purples
    ("#f8f5fb", "#dad1ec", "#ad95d1", "#784fa9", "#3c1a69"),
    ("#1f1a33", "#43346f", "#6f58a8", "#ab96d8", "#efe9fb"),
)
WEIGHT_CHANGES = Palette(  # its PiYG: less trust is magenta, more is green
    ("#8b1c61", "#d67fb2", "#f5f3f1", "#86be6f", "#276419"),
    ("#f2acd6", "#a8417f", "#20272f", "#4d8c40", "#b9e3a4"),
)
DISTANCE_CHANGES = Palette(  # its BrBG: nearer is teal, farther is brown
    ("#0b655c", "#78c1b5", "#f5f4f0", "#d8ae6b", "#84500f"),
    ("#a2e4d8", "#3c8c82", "#20272c", "#a07334", "#f0d096"),
)
RECALL_CHANGES = Palette(  # its PuOr: less is orange, more is violet
    ("#a9520a", "#efa14a", "#f6f4f2", "#9a8fc4", "#512584"),
    ("#f7b972", "#a4631e", "#21252c", "#7264ab", "#d3caf3"),
)
INK = "#1d2733"
CROSS = "\N{MULTIPLICATION SIGN}"  # marks a rejected input, so that no color has to


def shade(share: float, stops: Sequence[str]) -> str:
    """The color of a share in [0, 1], interpolated between evenly spaced `stops`, as #rrggbb."""
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    rest = place - first
    pairs = zip(_channels(stops[first]), _channels(stops[first + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * rest):02x}" for a, b in pairs)


def readable_on(color: str) -> str:
    """White or ink, whichever has more contrast to `color` (WCAG 2)."""
    luminance = _luminance(color) + 0.05
    on_ink = luminance / (_luminance(INK) + 0.05)
    return "#ffffff" if 1.05 / luminance > on_ink else INK


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _luminance(color: str) -> float:
    shares = [channel / 255 for channel in _channels(color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
