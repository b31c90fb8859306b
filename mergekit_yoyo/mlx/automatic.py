"""`--quant auto`: bits where they pay. The recipe that fits a size and moves the model least.

Each module is quantized alone and the model read on text (`sensitivity`), the widths are the
cheapest that fit (`allocation`), and what comes out is a recipe like any other. Half of the text
chooses, the other half says how far the chosen model is from the whole one.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

import mlx.core as mx
import mlx.nn as nn
import psutil

from mergekit_yoyo.errors import YoyoError, nearest
from mergekit_yoyo.mlx.allocation import Choice, allocate
from mergekit_yoyo.mlx.divergence import Reference
from mergekit_yoyo.mlx.opening import Opened
from mergekit_yoyo.mlx.plan import ExportPlan, Placement
from mergekit_yoyo.mlx.recipes import AFFINE_WIDTHS, Dtype, Recipe
from mergekit_yoyo.mlx.sensitivity import (
    Candidate,
    measured_widths,
    quantized,
    sensitivities,
)
from mergekit_yoyo.mlx.weights import load_lazily, stored_dtype
from mergekit_yoyo.progress import Progress
from mergekit_yoyo.staging import format_bytes
from mergekit_yoyo.text import Window, Writing, halves, read_texts, token_windows, written_text

WINDOWS, LENGTH = 16, 256  # of a text, half of them to choose by; tokens of each
LEAST_WINDOWS = 4
SELF = "self"  # what text is called that the model writes
BELOW = 2  # bits: no module gets fewer than so many below the mean, if the size allows
FLOAT32_BYTES = 4
OVERHEAD = 1.25  # of the weights, while a model runs


@dataclass(frozen=True)
class Auto:
    """A recipe that is to be found.

    Attributes:
        bits_per_weight: that it may have on average, scales and unquantized weights included.
        size: or the bytes that the folder may have.
        texts: files to measure on, by name; without any, the model writes its own.
        weights: of texts, 1 each by default.
        group_size: weights that share a scale.
        dtype: of what stays unquantized; None: as the checkpoint has it.
    """

    bits_per_weight: float | None = None
    size: int | None = None
    texts: Mapping[str, Path] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    group_size: int = 64
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        if (self.bits_per_weight is None) == (self.size is None):
            raise YoyoError("--quant auto: expected one of --bpw BITS and --size SIZE.")
        bits = self.bits_per_weight
        if bits is not None and not (math.isfinite(bits) and bits > 0):
            raise YoyoError(f"--bpw: expected a number of bits above 0; got {bits:g}.")
        for name, weight in self.weights.items():
            if name not in self.texts:
                hint = nearest(name, self.texts) or "--text NAME=FILE gives one."
                raise YoyoError(f"--weight {name}: there is no text of this name. {hint}")
            if not (math.isfinite(weight) and weight >= 0):
                raise YoyoError(f"--weight {name}: expected a number of 0 or more; got {weight:g}.")
        if self.texts and not any(self.weights.get(name, 1.0) for name in self.texts):
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


def text_windows(opened: Opened, auto: Auto) -> dict[str, list[Window]]:
    """The user's texts in windows.

    Raises:
        YoyoError: a text cannot be read, or says too little.
    """
    found = {}
    for text in read_texts(dict(auto.texts)):
        windows = token_windows(text, opened.tokenizer._tokenizer, LENGTH, WINDOWS)
        if len(windows) < LEAST_WINDOWS:
            raise YoyoError(
                f"--text {text.name}: {len(windows)} windows of {LENGTH} tokens are too few to "
                f"measure modules on; give at least {LEAST_WINDOWS}, better {WINDOWS}."
            )
        found[text.name] = windows
    return found


def found_recipe(opened: Opened, auto: Auto, progress: Progress) -> tuple[Recipe, list[str]]:
    """The recipe, and notes on how it was found.

    Args:
        opened: a checkpoint that mlx-lm reads as it is.
        auto: what is asked for.
        progress: told of each measurement.

    Raises:
        YoyoError: the size is impossible, a text says too little, or the model cannot be run.
    """
    play = in_play(opened, auto)
    choosing, reporting = _windows(opened, auto, progress)
    model, notes = _whole_model(opened)
    dtype = getattr(mx, auto.dtype or stored_dtype(opened.folder))
    reference = Reference(model, choosing)
    started = time.monotonic()
    reference.divergence(model)
    seconds = time.monotonic() - started
    count = len(play.placements) * len(measured_widths(play.widths))
    progress.say(
        f"{count} measurements of {reference.tokens:,} tokens, {seconds:.2g} s each: about "
        f"{math.ceil(count * seconds / 60)} min"
    )
    progress.begin("Measuring modules", total=count, unit="measurements")
    costs = sensitivities(model, reference, play.placements, dtype, progress)
    chosen = _cheapest(costs, play.budget, auto)
    del reference
    notes.append(_said(model, chosen, reporting, dtype))
    return _recipe(auto, chosen, choosing), notes


def _budget(auto: Auto, smallest: ExportPlan) -> int:
    if auto.size is not None:
        return auto.size - (smallest.folder_bytes - smallest.bytes)
    return int((auto.bits_per_weight or 0) * smallest.parameters / 8)


def _asked(auto: Auto) -> str:
    if auto.size is not None:
        return f"--size {format_bytes(auto.size)}"
    return f"--bpw {auto.bits_per_weight:g}"


def _windows(
    opened: Opened, auto: Auto, progress: Progress
) -> tuple[dict[str, list[Window]], dict[str, list[Window]]]:
    """Windows to choose by and windows to report on, by text."""
    found: dict[str, Sequence[Window]] = {**text_windows(opened, auto)}
    if not found:
        writing = Writing(samples=WINDOWS, tokens=LENGTH)
        with TemporaryDirectory() as place:
            file = Path(place) / "written.jsonl"
            written = written_text(opened.source.folder, file, writing, progress=progress)
        found[SELF] = written.windows
    parts = {name: halves(windows, seed=0) for name, windows in found.items()}
    return {n: one for n, (one, _) in parts.items()}, {n: other for n, (_, other) in parts.items()}


def _whole_model(opened: Opened) -> tuple[nn.Module, list[str]]:
    """The unquantized model: in float32 where that fits in memory, so that nothing but the change
    is measured."""
    model = load_lazily(opened.folder, opened.bridge, opened.declared)
    parameters = opened.plan("fp32").parameters
    if parameters * FLOAT32_BYTES * OVERHEAD < psutil.virtual_memory().available:
        model.set_dtype(mx.float32)
        return model, []
    return model, ["sensitivities were measured in the dtype of the checkpoint, for want of memory"]


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


def _said(
    model: nn.Module,
    chosen: Sequence[Placement],
    texts: Mapping[str, Sequence[Window]],
    dtype: mx.Dtype,
) -> str:
    """How far the chosen model is from the whole one, on text that chose nothing."""
    reference = Reference(model, texts)
    with quantized(model, chosen, dtype):
        parts = reference.divergence(model)
    shown = []
    for name, kl in parts.items():
        error = f" ± {stdev(kl) / len(kl) ** 0.5:.1g}" if len(kl) > 1 else ""
        shown.append(f"{name} {fmean(kl):.2g}{error}")
    return f"KL from the unquantized model on text kept apart, nats per token: {', '.join(shown)}"


def _recipe(
    auto: Auto, chosen: Sequence[Placement], texts: Mapping[str, Sequence[Window]]
) -> Recipe:
    bits = {placement.path: placement.bits or 0 for placement in chosen}
    usual = Counter(width for width in bits.values() if width).most_common(1)
    width = usual[0][0] if usual else None
    weights = [f"{n} {auto.weights[n]:g} times" for n in auto.weights]
    tokens = sum(len(window.tokens) for windows in texts.values() for window in windows)
    of = "text of its own" if SELF in texts and not auto.texts else ", ".join(texts)
    return Recipe(
        name=f"auto ({_asked(auto).removeprefix('--')})",
        bits_low=width,
        bits_high=width,
        period=0,
        group_size=auto.group_size,
        modules={f"^{re.escape(path)}$": b for path, b in bits.items() if b != (width or 0)},
        dtype=auto.dtype,
        origin=f"bits by the KL of each module, on {tokens:,} tokens of {of}"
        + (f" ({', '.join(weights)})" if weights else ""),
    )
