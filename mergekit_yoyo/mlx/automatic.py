"""`--quant auto`: bits where they pay. The recipe that fits a size and moves the model least.

Each module is quantized alone and the model read on text (`sensitivity`), the widths are the
cheapest that fit (`allocation`), and what comes out is a recipe like any other.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mergekit_yoyo.errors import YoyoError, nearest
from mergekit_yoyo.mlx.allocation import Choice, allocate
from mergekit_yoyo.mlx.calibration import Calibration
from mergekit_yoyo.mlx.divergence import Reference
from mergekit_yoyo.mlx.opening import Opened
from mergekit_yoyo.mlx.plan import ExportPlan, Placement
from mergekit_yoyo.mlx.recipes import AFFINE_WIDTHS, Dtype, Recipe
from mergekit_yoyo.mlx.sensitivity import Candidate, measured_widths, sensitivities
from mergekit_yoyo.mlx.weights import stored_dtype
from mergekit_yoyo.progress import Progress
from mergekit_yoyo.staging import format_bytes

BELOW = 2  # bits: no module gets fewer than so many below the mean, if the size allows


@dataclass(frozen=True)
class Auto:
    """A recipe that is to be found.

    Attributes:
        bits_per_weight: that it may have on average, scales and unquantized weights included.
        size: or the bytes that the folder may have.
        weights: of texts, 1 each by default.
        group_size: weights that share a scale.
        dtype: of what stays unquantized; None: as the checkpoint has it.
    """

    bits_per_weight: float | None = None
    size: int | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    group_size: int = 64
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        if (self.bits_per_weight is None) == (self.size is None):
            raise YoyoError("--quant auto: expected one of --bpw BITS and --size SIZE.")
        bits = self.bits_per_weight
        if bits is not None and not (math.isfinite(bits) and bits > 0):
            raise YoyoError(f"--bpw: expected a number of bits above 0; got {bits:g}.")

    def check_weights(self, texts: Collection[str]) -> None:
        """Refuse weights of texts that are not there, or that leave nothing to measure."""
        for name, weight in self.weights.items():
            if name not in texts:
                hint = nearest(name, texts) or "--text NAME=FILE gives one."
                raise YoyoError(f"--weight {name}: there is no text of this name. {hint}")
            if not (math.isfinite(weight) and weight >= 0):
                raise YoyoError(f"--weight {name}: expected a number of 0 or more; got {weight:g}.")
        if texts and not any(self.weights.get(name, 1.0) for name in texts):
            raise YoyoError("--weight: all texts have the weight 0: nothing would be measured.")

    def recipe(self, width: int | None) -> Recipe:
        """All modules at one width; None: not quantized."""
        return Recipe(
            name=f"q{width}" if width else "unquantized",
            bits_low=width,
            bits_high=width,
            period=0,
            group_size=self.group_size,
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class InPlay:
    """What a size leaves open.

    Attributes:
        placements: by module, the ways to quantize it, the whole one among them.
        budget: bytes for these modules.
        widths: of the modules.
    """

    placements: dict[str, list[Placement]]
    budget: int
    widths: list[int]


def in_play(opened: Opened, auto: Auto) -> InPlay:
    """The widths that may be chosen for each module.

    Raises:
        YoyoError: the size is impossible; it says the smallest that is not.
    """
    plans = {width: opened.plan(auto.recipe(width)) for width in (*AFFINE_WIDTHS, None)}
    smallest = plans[AFFINE_WIDTHS[0]]
    budget = _budget(auto, smallest)
    if smallest.bytes > budget:
        raise YoyoError(
            f"--quant auto: {_asked(auto)} is too small for this model: the smallest possible is "
            f"{smallest.bits_per_weight:.2f} bits per weight, {format_bytes(smallest.folder_bytes)}"
            f", in groups of {auto.group_size}."
        )
    narrowest = budget * 8 / smallest.parameters - BELOW
    fitting = [w for w in AFFINE_WIDTHS if w <= narrowest and plans[w].bytes <= budget]
    least = max(fitting, default=AFFINE_WIDTHS[0])
    widths = [width for width in AFFINE_WIDTHS if width >= least]
    ways: dict[str, dict[int | None, Placement]] = {}
    for width in (*widths, None):
        for placement in plans[width].placements:
            ways.setdefault(placement.path, {}).setdefault(placement.bits, placement)
    fixed = sum(next(iter(w.values())).bytes for w in ways.values() if len(w) == 1)
    open_to = {path: list(w.values()) for path, w in ways.items() if len(w) > 1}
    return InPlay(open_to, budget - fixed, widths)


def found_recipe(
    opened: Opened, auto: Auto, calibration: Calibration, progress: Progress
) -> Recipe:
    """The recipe that fits and moves the model least.

    Args:
        opened: a checkpoint that mlx-lm reads as it is.
        auto: what is asked for.
        calibration: the model whole, and what it reads.
        progress: told of each measurement.

    Raises:
        YoyoError: the size is impossible.
    """
    play = in_play(opened, auto)
    reference = Reference(calibration.model, calibration.choosing)
    started = time.monotonic()
    reference.divergence(calibration.model)
    seconds = time.monotonic() - started
    count = len(play.placements) * len(measured_widths(play.widths))
    progress.say(
        f"{count} measurements of {reference.tokens:,} tokens, {seconds:.2g} s each: about "
        f"{math.ceil(count * seconds / 60)} min"
    )
    progress.begin("Measuring modules", total=count, unit="measurements")
    dtype = getattr(mx, auto.dtype or stored_dtype(opened.folder))
    costs = sensitivities(calibration.model, reference, play.placements, dtype, progress)
    return _recipe(auto, _cheapest(costs, play.budget, auto), calibration.origin)


def _budget(auto: Auto, smallest: ExportPlan) -> int:
    if auto.size is not None:
        return auto.size - (smallest.folder_bytes - smallest.bytes)
    return int((auto.bits_per_weight or 0) * smallest.parameters / 8)


def _asked(auto: Auto) -> str:
    if auto.size is not None:
        return f"--size {format_bytes(auto.size)}"
    return f"--bpw {auto.bits_per_weight:g}"


def _cheapest(costs: Mapping[str, Sequence[Candidate]], budget: int, auto: Auto) -> list[Placement]:
    modules = [
        [Choice(_weighted(candidate, auto), candidate.placement.bytes) for candidate in candidates]
        for candidates in costs.values()
    ]
    found = allocate(modules, budget)
    return [ways[k].placement for ways, k in zip(costs.values(), found, strict=True)]


def _weighted(candidate: Candidate, auto: Auto) -> float:
    weights = {name: auto.weights.get(name, 1.0) for name in candidate.costs}
    total = sum(weights[name] * cost for name, cost in candidate.costs.items())
    return total / sum(weights.values())


def _recipe(auto: Auto, chosen: Sequence[Placement], read: str) -> Recipe:
    bits = {placement.path: placement.bits or 0 for placement in chosen}
    usual = Counter(width for width in bits.values() if width).most_common(1)
    width = usual[0][0] if usual else None
    weights = ", ".join(f"{name} {weight:g} times" for name, weight in auto.weights.items())
    return Recipe(
        name=f"auto ({_asked(auto).removeprefix('--')})",
        bits_low=width,
        bits_high=width,
        period=0,
        group_size=auto.group_size,
        modules={f"^{re.escape(path)}$": b for path, b in bits.items() if b != (width or 0)},
        dtype=auto.dtype,
        origin=f"bits by the KL of each module, on {read}{f' ({weights})' if weights else ''}",
    )
