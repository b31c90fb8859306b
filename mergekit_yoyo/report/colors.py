"""The scales of the heat maps: ColorBrewer's YlGnBu, safe for the color-blind, from 0 to 1.

In the dark it runs the other way, so that little weight is always close to the background.
"""

from collections.abc import Sequence

LIGHT = ["#fbf8e3", "#c7e6bd", "#5bbcc0", "#2a74b2", "#122a63"]
DARK = ["#161f33", "#22477f", "#2f86ab", "#7fcbb6", "#f3f3c8"]
INK = "#2b3440"
CROSS = "\N{MULTIPLICATION SIGN}"  # marks a rejected input, so that no color has to


def shade(value: float, stops: Sequence[str] = tuple(LIGHT)) -> str:
    """The color of a value in [0, 1], interpolated between evenly spaced `stops`, as #rrggbb."""
    place = min(max(value, 0.0), 1.0) * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    share = place - first
    pairs = zip(_channels(stops[first]), _channels(stops[first + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def is_dark(color: str) -> bool:
    """Whether white is easier to read on `color` than dark ink."""
    red, green, blue = _channels(color)
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
