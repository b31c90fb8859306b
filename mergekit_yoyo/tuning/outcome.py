"""What a search came to, in numbers and in a sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from rich.table import Table

from mergekit_yoyo.tuning.knobs import Setting, knob_of
from mergekit_yoyo.tuning.measured import SURE, Figure, Measured
from mergekit_yoyo.tuning.recipe import Recipe
from mergekit_yoyo.tuning.search import Line

GIVEN, TUNED = "as given", "tuned"
NEARNESS = (
    "That is nearness to the models on text of their own. Real text may like another strength, "
    "often a larger one: if you have some, give it with --text."
)
REMARK = 98  # characters of a line of the comment


@dataclass(frozen=True)
class Outcome:
    """given, best: as published, on the half that reports; best is given where nothing else was
    chosen. lines: on the half that chooses. landmarks: other methods, on both halves. single: the
    best with one strength for all, where the best has several."""

    recipe: Recipe
    given: Measured
    best: Measured
    lines: Sequence[Line]
    landmarks: Mapping[str, tuple[Measured, Measured]]
    by_divergence: bool
    candidates: int
    ended_by: str
    notes: Sequence[str]
    single: Measured | None = None

    @property
    def gain(self) -> Figure:
        """How far the best is below the given YAML, sample by sample."""
        return self.given.above(self.best)

    @property
    def is_better(self) -> bool:
        """Whether that is more than noise."""
        return self.gain.is_sure

    @property
    def setting(self) -> Setting:
        """What the tuned YAML is to say: the given values, unless others are better."""
        return self.best.setting if self.is_better else self.given.setting

    @property
    def measure(self) -> str:
        """What was measured, with its unit."""
        return "KL, nats a token" if self.by_divergence else "loss, nats a token"

    @property
    def changes(self) -> list[str]:
        """`recall_strength: 3.1 (was auto)` for each option that the best has otherwise."""
        return [
            f"{self.named(key)}: {_value(value)} (was {_value(self.given.setting[key])})"
            for key, value in self.best.setting.items()
            if value != self.given.setting[key]
        ]

    def named(self, key: str) -> str:
        """A key for people: `weight of code`."""
        option, _, index = key.rstrip("]").partition("[")
        if not index:
            return option
        return f"{option} of {self.recipe.models[int(index)].rpartition('/')[2]}"

    def sentences(self) -> list[str]:
        """What was gained over the given YAML, and whether that is more than noise."""
        found = [self._verdict()]
        if self.by_divergence and self.changes:
            found.append(NEARNESS)
        if self.single is not None:
            found.append(
                f"With one strength for all it is {self.single.figure}: several gain "
                f"{self.single.above(self.best)}, more than noise."
            )
        if other := self._best_landmark():
            found.append(other)
        found += self._of_lines()
        if self.ended_by:
            found.append(
                f"The search was ended by its budget ({self.ended_by}): more may find more."
            )
        return found

    def _verdict(self) -> str:
        what = "KL" if self.by_divergence else "loss"
        if not self.changes:
            return (
                f"The YAML stays as it is: none of {self.candidates} candidates was below it by "
                f"more than its error; {what} {self.given.figure} nats a token."
            )
        numbers = (
            f"{what} {self.best.figure} in place of {self.given.figure} nats a token on text that "
            f"did not choose, {self.gain} less sample by sample"
        )
        if self.is_better:
            return f"Better: {', '.join(self.changes)}: {numbers}, more than noise."
        return (
            f"The YAML stays as it is: the best of {self.candidates} candidates "
            f"({', '.join(self.changes)}) gains nothing beyond noise: {numbers}, which "
            f"is not above {SURE:g} standard errors."
        )

    def _best_landmark(self) -> str | None:
        here = self.best if self.is_better else self.given
        lower = {label: here.above(reported) for label, (_, reported) in self.landmarks.items()}
        lower = {label: gain for label, gain in lower.items() if gain.is_sure}
        if not lower:
            return None
        label = max(lower, key=lambda name: lower[name].value)
        return f"{label}{_at(self.landmarks[label][1])} stands lower still, by {lower[label]}."

    def _of_lines(self) -> list[str]:
        found = []
        for line in {line.key: line for line in self.lines}.values():  # the last of each
            knob = knob_of(line.key)
            if not line.points:
                continue
            lowest = line.lowest[0]
            if line.best is not None:
                best = f"{line.best.value:.3g} ± {line.best.error:.2g}"
                found.append(f"{self.named(line.key)}: lowest at {best} by a fitted parabola.")
            elif lowest in (knob.lowest, knob.highest):
                found.append(
                    f"{self.named(line.key)}: lowest at {lowest:g}, the end of the range searched."
                )
        return found

    def rows(self) -> list[tuple[str, Measured]]:
        """All that was measured on the half that reports, by label."""
        rows = [(GIVEN, self.given)]
        if self.changes:
            rows.append((TUNED if self.is_better else "best candidate", self.best))
        if self.single is not None:
            rows.append(("tuned, one strength", self.single))
        rows += [
            (f"{label}{_at(reported)}", reported) for label, (_, reported) in self.landmarks.items()
        ]
        return rows

    def table(self) -> Table:
        """The rows for a terminal: by text, the mean, the worst, and what lies between."""
        names = list(self.given.values)
        table = Table(
            title=f"{self.measure}, on the half that did not choose", title_justify="left"
        )
        table.add_column("merge")
        for name in [*names, "mean", "against the YAML"]:
            table.add_column(name, justify="right")
        table.add_column("worst")
        if self.by_divergence:
            table.add_column("loss", justify="right")
        for label, measured in self.rows():
            means = [f"{float(measured.values[name].mean()):.4f}" for name in names]
            against = "" if measured is self.given else f"{_signed(measured.above(self.given))}"
            cells = [label, *means, str(measured.figure), against, measured.worst[0]]
            if self.by_divergence:
                cells.append(f"{measured.loss.value:.4f}")
            table.add_row(*cells)
        return table

    def remarks(self) -> list[str]:
        """The comment of the tuned YAML."""
        names = list(self.given.values)
        counts = ", ".join(f"{len(self.given.values[name])} samples of {name}" for name in names)
        lines = [
            *self.sentences(),
            f"Measured: {self.measure}, {self.candidates} candidates. What follows is of other "
            f"text than what chose ({counts}): mean and standard error over samples.",
        ]
        lines = [part for line in lines for part in wrap(line, REMARK)]
        width = max(len(label) for label, _ in self.rows())
        lines += [f"  {label:<{width}}  {measured.figure}" for label, measured in self.rows()]
        notes = [part for note in self.notes for part in wrap(f"note: {note}", REMARK)]
        return [*lines, *notes]


def _at(measured: Measured) -> str:
    """` at lambda 0.7` for a landmark that was itself searched."""
    if not measured.setting:
        return ""
    return " at " + ", ".join(f"{key} {_value(value)}" for key, value in measured.setting.items())


def not_better_by(by: str | None, gain: Figure) -> str:
    """The note on strengths by band that are not taken."""
    return f"strengths by {by} gain {gain} over one for all: not more than noise, so one it is"


def _value(value: Any) -> str:
    """A value for people; of filters and gradients the numbers."""
    if isinstance(value, list):
        parts = []
        for entry in value:
            name = str(entry.get("filter", "all else")).strip(".")
            numbers = entry["value"] if isinstance(entry["value"], list) else [entry["value"]]
            parts.append(f"{name} {' to '.join(f'{number:g}' for number in numbers)}")
        return "; ".join(parts)
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _signed(figure: Figure) -> str:
    return f"{figure.value:+.4f} ± {figure.error:.4f}"
