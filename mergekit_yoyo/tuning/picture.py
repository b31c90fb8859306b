"""The picture: how far the merge is from each model along the strength, and where others stand."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.install import install_line
from mergekit_yoyo.tuning.knobs import knob_of
from mergekit_yoyo.tuning.measured import Figure, mean_of
from mergekit_yoyo.tuning.outcome import Outcome
from mergekit_yoyo.tuning.search import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colors, told apart by the color-blind
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
INK, FAINT, STAR = "#2b3440", "#dddddd", "#b00020"
DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)))


def render_picture(outcome: Outcome) -> bytes | None:
    """A PNG with a panel for each option along which was searched; None if there was none.

    Raises:
        YoyoError: matplotlib (extra `report`) is not installed.
    """
    try:
        from matplotlib.figure import Figure as Sheet
    except ImportError as error:
        raise YoyoError(f"a picture needs matplotlib: {install_line('report')}") from error
    lines = _drawn(outcome)
    if not lines:
        return None
    sheet = Sheet(figsize=(1.5 + 5.2 * len(lines), 4.6), layout="constrained")
    panels = sheet.subplots(1, len(lines), squeeze=False, sharey=True)[0]
    for line, panel in zip(lines, panels, strict=True):
        _draw(outcome, line, panel)
    panels[0].set_ylabel(f"{outcome.measure} (lower is better)", color=INK, fontsize=9)
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    sheet.legend(
        list(handles.values()), list(handles), loc="outside right upper", fontsize=8, frameon=False
    )
    note = "half of the text that chose; bars: one standard error over its samples"
    sheet.supxlabel(note, fontsize=7, x=0.01, ha="left", color=INK)
    png = BytesIO()
    sheet.savefig(png, dpi=130, format="png", facecolor="white", pil_kwargs={"optimize": True})
    return png.getvalue()


def _drawn(outcome: Outcome) -> list[Line]:
    """The last line along each option that has three points, at most three options."""
    last = {line.key: line for line in outcome.lines if len(line.points) > 2}
    return list(last.values())[:3]


def _draw(outcome: Outcome, line: Line, panel: "Axes") -> None:
    numbers = [number for number, _ in line.points]
    series: dict[str, list[Figure]] = {
        name: [mean_of({name: m.values[name]}) for _, m in line.points]
        for name in outcome.given.values
    }
    for (name, figures), color in zip(series.items(), COLORS * 9, strict=False):
        _points(panel, numbers, figures, color, name, width=1.2)
    _points(panel, numbers, [m.figure for _, m in line.points], INK, "mean", width=2.2)
    for (label, (chosen, _)), dash in zip(outcome.landmarks.items(), DASHES * 9, strict=False):
        panel.axhline(
            chosen.figure.value, color=INK, linewidth=0.9, linestyle=dash, label=f"{label}: mean"
        )
    lowest, measured = line.lowest
    panel.plot(
        [lowest],
        [measured.figure.value],
        "*",
        color=STAR,
        markersize=13,
        zorder=5,
        label="lowest measured",
    )
    value = outcome.given.setting.get(line.key)
    if isinstance(value, int | float):
        panel.axvline(value, color="#999999", linewidth=1.0, zorder=0, label="the YAML's own value")
    if knob_of(line.key).logarithmic:
        panel.set_xscale("log")
        panel.set_xticks(numbers, [f"{number:g}" for number in numbers])
        panel.minorticks_off()
    others = {
        k: v for k, v in measured.setting.items() if k != line.key and not _is_own(outcome, k, v)
    }
    title = outcome.named(line.key) + "".join(
        f", {outcome.named(k)} {v}" for k, v in others.items()
    )
    panel.set_title(title.replace("$", r"\$"), fontsize=9, loc="left", color=INK)
    panel.set_xlabel(outcome.named(line.key), fontsize=9, color=INK)
    panel.grid(color=FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8, labelcolor=INK, labelleft=True)


def _points(
    panel: "Axes", numbers: list[float], figures: list[Figure], color: str, label: str, width: float
) -> None:
    heights = np.array([f.value for f in figures])
    errors = np.array([f.error for f in figures])
    finite = np.isfinite(heights)
    panel.errorbar(
        np.array(numbers)[finite],
        heights[finite],
        yerr=errors[finite],
        fmt="o-",
        color=color,
        linewidth=width,
        markersize=3.5,
        elinewidth=0.8,
        capsize=2,
        label=label.replace("$", r"\$"),
    )


def _is_own(outcome: Outcome, key: str, value: object) -> bool:
    return outcome.given.setting.get(key) == value
