"""What the parts of `--rounding feedback` do: its scales, their weighting, the errors fed forward.

    python benchmarks/quant_parts.py              # the merge of examples/quickstart.yml
    python benchmarks/quant_parts.py --write      # into docs/mlx.md

KL from the unquantized model on held-out text, as the change from mlx's own rounding with its error
paired over windows; as benchmarks/quant_rounding.py has it.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import click
import mlx.core as mx
import numpy as np
from pages import show, write_option
from quant_auto import CACHE, TOYS, calibration_of, change, source
from quant_rounding import divergence

from mergekit_yoyo.mlx import better, rounding
from mergekit_yoyo.mlx.divergence import Reference
from mergekit_yoyo.mlx.opening import open_checkpoint
from mergekit_yoyo.mlx.rounding import Floats, Rounded, fed_forward

RECIPES = ("q3", "q4", "q4-hi", "q6")
DOMAINS = ("code", "german")
WINDOWS = 8

Way = Callable[[mx.array, int, int, mx.Dtype, Floats], Rounded]


def weighted(
    weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype, moments: Floats
) -> Rounded:
    """Scales by search with the energies of the inputs; inputs that are alone feed nothing."""
    return fed_forward(weight, bits, group_size, dtype, np.diag(np.diag(moments)))


def of_mlx(
    weight: mx.array, bits: int, group_size: int, dtype: mx.Dtype, moments: Floats
) -> Rounded:
    """Errors fed forward, with the scales that mlx takes from the range of a group."""
    with patch.object(rounding, "SHRINKS", ()):
        return fed_forward(weight, bits, group_size, dtype, moments)


WAYS: dict[str, Way] = {
    "search, weighted": weighted,
    "feedback, mlx's scales": of_mlx,
    "feedback": fed_forward,
}


@contextmanager
def feeding(way: Way) -> Iterator[None]:
    with patch.object(better, "fed_forward", way):
        yield


@click.command(help=__doc__.split("\n\n")[0])
@write_option
def main(write: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        opened = open_checkpoint(source(TOYS, Path(place), CACHE))
        calibration = calibration_of(opened, TOYS, DOMAINS, (WINDOWS, WINDOWS), CACHE)
        reference = Reference(calibration.model, calibration.reporting)
        lines = [f"| recipe | search | {' | '.join(WAYS)} |", f"|---|---:|{'---:|' * len(WAYS)}"]
        for recipe in RECIPES:
            plan = opened.plan(recipe)
            before = divergence(opened, calibration, reference, plan, "nearest")
            cells = [change(divergence(opened, calibration, reference, plan, "search"), before)]
            for way in WAYS.values():
                with feeding(way):
                    found = divergence(opened, calibration, reference, plan, "feedback")
                cells.append(change(found, before))
            lines.append(f"| {recipe} | {' | '.join(cells)} |")
    show(lines, "mlx.md", "quant-parts", write=write)


if __name__ == "__main__":
    main()
