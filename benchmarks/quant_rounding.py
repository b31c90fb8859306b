"""`--rounding` at the same bits: KL to the unquantized model on held-out text.

    python benchmarks/quant_rounding.py                      # the merge of examples/quickstart.yml
    python benchmarks/quant_rounding.py --base smollm2-135m  # --write: into docs/mlx.md

Real bases are taken off the grid of their GGUF file first (`off_grid` in quality/models.py).

The second moments for `feedback` come from other text than the table's. The change is that from
mlx's own rounding, its error paired over windows.
On Linux preload OpenBLAS (docs/mlx.md): mlx's own BLAS is too slow for a real model.
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
from pages import show, write_option
from quant_auto import BASES, CACHE, TOYS, better, calibration_of, change, source

from mergekit_yoyo.mlx.better import Rounding
from mergekit_yoyo.mlx.calibration import Calibration
from mergekit_yoyo.mlx.divergence import Reference
from mergekit_yoyo.mlx.opening import Opened, open_checkpoint
from mergekit_yoyo.mlx.plan import ExportPlan

RECIPES = ("q3", "q4", "q4-hi", "qx64", "q6", "mxfp4")
ROUNDINGS: tuple[Rounding, ...] = ("search", "feedback")


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", type=click.Choice(list(BASES)), default=TOYS, show_default=True)
@click.option("--domain", "domains", multiple=True, default=("code", "german"), show_default=True)
@click.option("--windows", default=8, show_default=True, help="Of 256 tokens, for the moments.")
@click.option("--reported", default=8, show_default=True, help="Windows of the table.")
@click.option("--recipe", "recipes", multiple=True, default=RECIPES, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@write_option
def main(
    base: str,
    domains: tuple[str, ...],
    windows: int,
    reported: int,
    recipes: tuple[str, ...],
    cache: Path,
    write: bool,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        opened = open_checkpoint(source(base, Path(place), cache))
        calibration = calibration_of(opened, base, domains, (windows, reported), cache)
        reference = Reference(calibration.model, calibration.reporting)
        lines = [
            "| recipe | bits per weight | nearest | search | change | feedback | change |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for recipe in recipes:
            lines.append(row(opened, calibration, reference, recipe))
            click.echo(lines[-1], err=True)
    show(lines, "mlx.md", f"quant-rounding-{base}", write=write)


def row(opened: Opened, calibration: Calibration, reference: Reference, recipe: str) -> str:
    """KL by rounding."""
    plan = opened.plan(recipe)
    cells, before = [], np.zeros(0)
    for rounding in ("nearest", *ROUNDINGS):
        if rounding == "feedback" and plan.recipe.mode != "affine":
            cells += ["", ""]
            continue
        found = divergence(opened, calibration, reference, plan, rounding)
        cells.append(f"{found.mean():.2g}")
        if rounding == "nearest":
            before = found
        else:
            cells.append(change(found, before))
    return f"| {recipe} | {plan.bits_per_weight:.2f} | {' | '.join(cells)} |"


def divergence(
    opened: Opened,
    calibration: Calibration,
    reference: Reference,
    plan: ExportPlan,
    rounding: Rounding,
) -> np.ndarray:
    """By window of the reference."""
    started = time.monotonic()
    found = np.concatenate(list(better(opened, calibration, reference, plan, rounding).values()))
    click.echo(f"{plan.recipe.name}, {rounding}: {time.monotonic() - started:.0f} s", err=True)
    return found


if __name__ == "__main__":
    main()
