"""The quantities that stand beside the tasks: perplexity, divergence, size, memory, speed.

Each is a column of its own by what it depends on: the text, the model compared with, the device.
Numbers of different devices, or of an unknown one, never stand in one column.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NO_DEVICE = "device not stated"
_WHOLE = 1000  # from here on without decimals


@dataclass(frozen=True)
class Quantity:
    """Something that is measured.

    title: what a column is called. unit: of its numbers. decimals: of one; None: four digits.
    meaning: for a note. link: the word between a text and the reference. on_text, on_device: what
    it depends on.
    """

    title: str
    unit: str
    decimals: int | None
    meaning: str
    lower_is_better: bool = False
    link: str = ""
    on_text: bool = False
    on_device: bool = False

    def show(self, value: float) -> str:
        """A number of this quantity, for a person."""
        if self.decimals is not None:
            return f"{value:.{self.decimals}f}"
        return f"{value:.4g}" if value < _WHOLE else f"{value:.0f}"


QUANTITIES = {
    "perplexity": Quantity(
        "perplexity",
        "",
        3,
        "exp of the mean loss per token",
        lower_is_better=True,
        on_text=True,
    ),
    "kl": Quantity(
        "KL",
        "",
        5,
        "mean Kullback-Leibler divergence per token, in nats",
        lower_is_better=True,
        link="to",
        on_text=True,
    ),
    "top1": Quantity(
        "top-1 agreement",
        "",
        4,
        "share of tokens with the same most likely one",
        link="with",
        on_text=True,
    ),
    "size": Quantity(
        "size",
        "GB",
        None,
        "all tensors, scales included, without headers and other files, in 10^9 bytes",
    ),
    "bits": Quantity("bits", "per weight", 2, "8 x size / weights"),
    "memory": Quantity(
        "memory",
        "GB",
        None,
        "the most while loading and running, in 10^9 bytes: of mlx's arrays, of a GPU, or of "
        "the process beyond what it had without the model",
        on_device=True,
    ),
    "prompt": Quantity("prompt", "tokens/s", None, "reading one prompt", on_device=True),
    "generation": Quantity("generation", "tokens/s", None, "writing one answer", on_device=True),
}


@dataclass(frozen=True)
class MeasureColumn:
    """What a column is of: a quantity, and what it depends on (None where it does not).

    on: the text, or the device. reference: the name of the model compared with.
    """

    quantity: str
    on: str | None = None
    reference: str | None = None

    @property
    def kind(self) -> Quantity:
        return QUANTITIES[self.quantity]

    @property
    def title(self) -> str:
        return self.kind.title

    @property
    def subtitle(self) -> str:
        """Text and reference, or unit and device: `code, to merged`, `tokens/s, Apple M2`."""
        kind = self.kind
        on = self.on or (_NO_DEVICE if kind.on_device else "")
        reference = f"{kind.link} {self.reference}" if self.reference else ""
        return ", ".join(part for part in (kind.unit, on, reference) if part)


@dataclass(frozen=True)
class Measure:
    """One number. `parts`: its mean's parts by window, for a paired difference; `tokens`: a hash of
    what they are of. `setup`: by what rows of a column may differ, by name."""

    value: float
    stderr: float | None = None
    parts: tuple[float, ...] = ()
    tokens: str | None = None
    setup: Mapping[str, str] | None = None


def is_measure(name: str) -> bool:
    """Whether a name of a column is one of a quantity, not of a task."""
    return name.partition(":")[0] in QUANTITIES


def column_of(title: str, subtitle: str) -> MeasureColumn | None:
    """The column that a header of a Markdown table means; None if it is a task's."""
    by_title = {kind.title.lower(): name for name, kind in QUANTITIES.items()}
    name = by_title.get(title.lower())
    if name is None:
        return None
    kind = QUANTITIES[name]
    rest = subtitle.removeprefix(kind.unit).removeprefix(", ") if kind.unit else subtitle
    reference = None
    if kind.link and (match := re.fullmatch(rf"(?:(.*), )?{kind.link} (.+)", rest)):
        rest, reference = match[1] or "", match[2]
    return MeasureColumn(name, None if rest in {"", _NO_DEVICE} else rest, reference)
