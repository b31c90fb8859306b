"""`--quant auto` beside fixed recipes and mlx-lm's own, at the same size each: KL on held-out text.

    python benchmarks/quant_auto.py                          # the merge of examples/quickstart.yml
    python benchmarks/quant_auto.py --base smollm2-135m      # about an hour on two cores
    python benchmarks/quant_auto.py --write                  # into docs/mlx.md

Sensitivities are measured once, on text that is not the text of the table; for each recipe the
widths are then chosen that fit its bytes. Beside ours stand mlx-lm's `mixed_*` recipes and the
choice of `mlx_lm.dynamic_quant` (4 and 8 bits at 5 on average), by mlx-lm's own code on the same
text. `mlx_lm.gptq` (4 bits, with its 6 for the embedding) and `mlx_lm.awq` (4 bits) round better
than to nearest; beside them `auto` stands with `--rounding feedback`. Finished rows are kept in the
cache.
On Linux preload OpenBLAS (docs/mlx.md): mlx's own BLAS is too slow for a real model.
"""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from kept import Kept
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize
from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
from mlx_lm.quant.gptq import gptq_quantize
from pages import show, write_option

from mergekit_yoyo.mlx.allocation import Choice, allocate
from mergekit_yoyo.mlx.better import Rounding, round_better
from mergekit_yoyo.mlx.calibration import Calibration, read_back, replaced
from mergekit_yoyo.mlx.divergence import Reference
from mergekit_yoyo.mlx.opening import Opened, open_checkpoint
from mergekit_yoyo.mlx.plan import ExportPlan, Placement
from mergekit_yoyo.mlx.recipes import AFFINE_WIDTHS, Recipe, parse_recipe
from mergekit_yoyo.mlx.sensitivity import measured_widths, rounded_weight, sensitivities
from mergekit_yoyo.mlx.weights import load_lazily, stored_dtype
from mergekit_yoyo.progress import SILENT
from mergekit_yoyo.terminal import TerminalProgress
from mergekit_yoyo.text import Text, Window, token_windows

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))
from models import BASES, CACHE, TOYS, base_folder, held_out, off_grid, texts_of  # noqa: E402

FIXED = ("q3", "qx43", "q4", "q4-hi", "qx64p4", "qx64", "qx64-hi", "q6", "qx86p4", "qx86", "q8")
MIXED = ("mixed_3_4", "mixed_3_6", "mixed_4_6")
DYNAMIC = "dynamic_quant, 5 bits"
LENGTH = 256


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", type=click.Choice(list(BASES)), default=TOYS, show_default=True)
@click.option("--domain", "domains", multiple=True, default=("code", "german"), show_default=True)
@click.option("--windows", default=8, show_default=True, help="Of 256 tokens, to choose by.")
@click.option("--least", default=3, show_default=True, help="The narrowest width in play.")
@click.option("--reported", default=8, show_default=True, help="Windows of the table.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@write_option
def main(
    base: str,
    domains: tuple[str, ...],
    windows: int,
    least: int,
    reported: int,
    cache: Path,
    write: bool,
) -> None:
    widths = [width for width in AFFINE_WIDTHS if width >= least]
    with tempfile.TemporaryDirectory() as place:
        opened = open_checkpoint(source(base, Path(place), cache))
        calibration = calibration_of(opened, base, domains, (windows, reported), cache)
        settings = "-".join(map(str, (*domains, windows, least, reported)))
        kept = Kept(cache / base / f"quant-auto-{settings}.json")
        lines = table(opened, calibration, widths, kept)
    show(lines, "mlx.md", f"quant-auto-{base}", write=write)


def source(base: str, place: Path, cache: Path) -> Path:
    """The model to quantize."""
    if base != TOYS:
        return off_grid(base_folder(base, cache), place / "off-grid")
    command = ["mergekit-yaml", "examples/quickstart.yml", str(place / "merged")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return place / "merged"


def texts(base: str, domain: str, cache: Path) -> tuple[str, str]:
    """Text to choose by and text to report on."""
    if base != TOYS:
        return texts_of(domain, cache)
    text = held_out(base, domain, cache)
    return text[: len(text) // 2], text[len(text) // 2 :]


def calibration_of(
    opened: Opened, base: str, domains: Sequence[str], counts: tuple[int, int], cache: Path
) -> Calibration:
    """The model in float32, with so many windows of each text to choose by and to report on."""
    parts: tuple[dict[str, list[Window]], dict[str, list[Window]]] = ({}, {})
    for domain in domains:
        for found, text, most in zip(parts, texts(base, domain, cache), counts, strict=True):
            tokenizer = opened.tokenizer._tokenizer
            found[domain] = token_windows(Text(domain, (text,)), tokenizer, LENGTH, most)
    return Calibration(whole(opened), *parts, ())


def whole(opened: Opened) -> nn.Module:
    """The model in float32."""
    model = load_lazily(opened.folder, opened.bridge, opened.declared)
    model.set_dtype(mx.float32)
    return model


def table(opened: Opened, calibration: Calibration, widths: Sequence[int], kept: Kept) -> list[str]:
    """Bits, KL by text and in the mean; of each recipe, and of `auto` at its size."""
    model, choosing = calibration.model, calibration.choosing
    dtype = getattr(mx, stored_dtype(opened.folder))
    costs = kept_costs(opened, model, choosing, widths, dtype, kept)
    reference = Reference(model, calibration.reporting)
    names = " | ".join(choosing)
    lines = [
        f"| recipe | bits per weight | KL: {names} | mean | "
        f"auto at the same size: {names} | mean | change |",
        "|---|---:|" + "---:|" * (2 * len(choosing) + 3),
    ]
    recipes: dict[str, Callable[[], Recipe]] = {
        **{name: partial(parse_recipe, name) for name in FIXED},
        **{name: partial(mixed_recipe, name, model) for name in MIXED},
        DYNAMIC: partial(dynamic_recipe, model, choosing),
    }
    least = opened.plan(f"q{widths[0]}").bytes

    def fixed(recipe: Callable[[], Recipe]) -> str:
        plan = opened.plan(recipe())
        if plan.bytes < least:
            return ""  # narrower than what is in play
        chosen = cheapest(costs, plan.bytes, plan.placements)
        cells = [divergences(model, reference, way, dtype) for way in (plan.placements, chosen)]
        return row(plan.recipe.name, plan.bits_per_weight, *cells)

    def rounded(name: str, other: Other) -> str:
        plan = opened.plan(other.recipe)
        found = reference.divergence(other.quantized(whole(opened), rows(choosing)))
        auto = opened.plan(as_recipe(cheapest(costs, plan.bytes, plan.placements)))
        best = better(opened, calibration, reference, auto, "feedback")
        return row(f"{name}; auto with feedback", plan.bits_per_weight, found, best)

    makes = {name: partial(fixed, recipe) for name, recipe in recipes.items()}
    makes |= {name: partial(rounded, name, other) for name, other in OTHERS.items()}
    for name, make in makes.items():
        if line := kept.get(name, make):
            lines.append(line)
            click.echo(line, err=True)
    return lines


def row(
    name: str, bits: float, fixed: Mapping[str, np.ndarray], auto: Mapping[str, np.ndarray]
) -> str:
    """One line; the change of the mean, with its error paired over windows."""
    shown = []
    for found in (fixed, auto):
        means = [kl.mean() for kl in found.values()]
        shown += [f"{x:.2g}" for x in (*means, np.mean(means))]
    after, before = (np.concatenate([found[text] for text in fixed]) for found in (auto, fixed))
    return f"| {name} | {bits:.2f} | {' | '.join(shown)} | {change(after, before)} |"


def change(found: np.ndarray, before: np.ndarray) -> str:
    """Of the mean, with its error paired over windows."""
    off = found - before
    error = off.std(ddof=1) / len(off) ** 0.5
    return f"{off.mean() / before.mean():+.0%} ± {error / before.mean():.0%}"


def divergences(
    model: nn.Module, reference: Reference, placements: Sequence[Placement], dtype: mx.Dtype
) -> dict[str, np.ndarray]:
    modules = dict(model.named_modules())
    weights = {
        p.path: rounded_weight(modules[p.path], p.quantization or {}, dtype)
        for p in placements
        if p.bits
    }
    with replaced(model, weights):
        return reference.divergence(model)


Costs = dict[str, list[tuple[Placement, float]]]


def kept_costs(
    opened: Opened,
    model: nn.Module,
    choosing: Mapping[str, Sequence[Window]],
    widths: Sequence[int],
    dtype: mx.Dtype,
    kept: Kept,
) -> Costs:
    """Of each module, its ways at groups of 64 and what each costs; measured once."""
    ways: dict[str, list[Placement]] = {}
    for width in widths:
        recipe = Recipe(name="", bits_low=width, bits_high=width, period=0)
        for placement in opened.plan(recipe).placements:
            if placement.bits == width:
                ways.setdefault(placement.path, []).append(placement)

    def measure() -> dict[str, dict[str, float]]:
        reference = Reference(model, choosing)
        with TerminalProgress() as progress:
            count = len(ways) * len(measured_widths(widths))
            progress.begin("Measuring modules", total=count, unit="measurements")
            measured = sensitivities(model, reference, ways, dtype, progress)
        return {
            path: {str(c.placement.bits): fmean(c.costs.values()) for c in candidates}
            for path, candidates in measured.items()
        }

    costs = kept.get("costs", measure)
    return {
        path: [(way, costs[path][str(way.bits)]) for way in placements]
        for path, placements in ways.items()
    }


def cheapest(costs: Costs, bytes_: int, placements: Sequence[Placement]) -> list[Placement]:
    """The widths that fit the bytes of a plan, at groups of 64."""
    fixed = sum(p.bytes for p in placements if p.path not in costs)
    modules = [[Choice(cost, way.bytes) for way, cost in ways] for ways in costs.values()]
    found = allocate(modules, bytes_ - fixed)
    return [ways[k][0] for ways, k in zip(costs.values(), found, strict=True)]


def mixed_recipe(name: str, model: nn.Module) -> Recipe:
    """One of mlx-lm's `--quant-predicate` recipes."""
    predicate = mixed_quant_predicate_builder(name, model)
    return by_predicate(name, model, predicate, 4)


def dynamic_recipe(model: nn.Module, choosing: Mapping[str, Sequence[Window]]) -> Recipe:
    """mlx-lm's choice between 4 and 8 bits by the gradient of the KL."""
    sensitive = dict(estimate_sensitivities(model, rows(choosing), 4, 64, 8, 64, batch_size=1))
    threshold = estimate_threshold(model, sensitive, 5.0, 4, 64, 8, 64)

    def predicate(path: str, module: nn.Module) -> bool | dict[str, int]:
        return {"bits": 8} if sensitive[path] > threshold else True

    return by_predicate(DYNAMIC, model, predicate, 4)


def by_predicate(name: str, model: nn.Module, predicate: object, usual: int) -> Recipe:
    bits = {}
    for path, module in model.named_modules():
        if hasattr(module, "to_quantized"):
            found = predicate(path, module)  # type: ignore[operator]
            bits[path] = found["bits"] if isinstance(found, dict) else usual
    return of_bits(name, bits, usual)


def of_bits(name: str, bits: Mapping[str, int], usual: int) -> Recipe:
    """A recipe of widths by module path."""
    modules = {f"^{re.escape(path)}$": width for path, width in bits.items() if width != usual}
    return Recipe(name=name, bits_low=usual, bits_high=usual, period=0, modules=modules)


def rows(choosing: Mapping[str, Sequence[Window]]) -> mx.array:
    """[windows, tokens]: what mlx-lm's own methods read, all of one length."""
    windows = [window.tokens for windows in choosing.values() for window in windows]
    length = min(map(len, windows))
    return mx.array([tokens[:length] for tokens in windows])


def as_recipe(chosen: Sequence[Placement]) -> Recipe:
    """Chosen widths as a recipe."""
    bits = {p.path: p.bits or 0 for p in chosen}
    return of_bits("auto", bits, Counter(bits.values()).most_common(1)[0][0])


def better(
    opened: Opened,
    calibration: Calibration,
    reference: Reference,
    plan: ExportPlan,
    rounding: Rounding,
) -> dict[str, np.ndarray]:
    """KL by window of each text of the reference, of a plan with `--rounding`."""
    model = load_lazily(opened.folder, opened.bridge, opened.declared)
    if rounding != "nearest":
        round_better(model, plan, rounding, calibration, SILENT)
    plan.quantize(model)
    with replaced(calibration.model, read_back(model)):
        return reference.divergence(calibration.model)


@dataclass(frozen=True)
class Other:
    """A quantization of mlx-lm that makes other weights. recipe: of its size. quantized: from the
    whole model and [windows, tokens] to read."""

    recipe: Recipe
    quantized: Callable[[Any, mx.array], nn.Module]


def _gptq(model: Any, read: mx.array) -> nn.Module:
    return gptq_quantize(model, read, 4, 64, 6, 64, batch_size=1)[0]


def _awq(model: Any, read: mx.array) -> nn.Module:
    config = AWQ_MODEL_CONFIGS[model.model_type]
    awq_quantize(model, read, config, group_size=64, bits=4, embed_group_size=64, embed_bits=4)
    return model


_HEAD_6 = {r"embed_tokens$|lm_head$": 6}
OTHERS = {
    "gptq, 4 bits": Other(
        Recipe(name="gptq", bits_low=4, bits_high=4, period=0, modules=_HEAD_6), _gptq
    ),
    "awq, 4 bits": Other(parse_recipe("q4"), _awq),
}


if __name__ == "__main__":
    main()
