"""How much round-off may be enlarged before float32 shows in a merge by recall.

    python benchmarks/recall_precision.py           # a Markdown table, some minutes
    python benchmarks/recall_precision.py --write   # into docs/recall.md

The error of float32 against float64, in steps of bfloat16 (an element smaller than the RMS of its
tensor counts as that), grows with `LinearInputs.enlarged`, whatever the residuals look like. The
table has the enlargement at which the worst element would reach 1/20 of a step, which is what
`recall_precision: auto` promises: its lowest must not be below `FLOAT32_ENLARGED`.
"""

from itertools import product
from unittest.mock import patch

import click
import numpy as np
import torch
from pages import show, write_option
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mergekit_yoyo.algorithm.options import Options
from mergekit_yoyo.algorithm.packing import WHOLE, problems
from mergekit_yoyo.algorithm.recall import Recall
from mergekit_yoyo.algorithm.rounding import Destination
from mergekit_yoyo.algorithm.spaces import LinearInputs
from mergekit_yoyo.algorithm.span import span_of
from mergekit_yoyo.algorithm.tolerances import FLOAT32_ENLARGED

COUNTS, RANKS, ANCHORS = (3, 5, 8), (1, 4, 32, None), (0, None)
SHAPES = ((128, 512), (512, 512), (256, 1024))
DIFFERENCES = (0.005, 0.02, 0.1)  # of the weights
PROMISED = 1 / 20
NOMINAL = 100.0  # the enlargement of flat residuals


def models(count: int, difference: float, shape: tuple[int, int], rank: int | None) -> list[Tensor]:
    """Random weights with differences of a rank (None: full), in bfloat16."""
    random = torch.Generator().manual_seed(1)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=random, dtype=torch.float64)

    base, found = noise(*shape), []
    for _ in range(count):
        move = noise(*shape) if rank is None else noise(shape[0], rank) @ noise(rank, shape[1])
        found.append(base + difference * base.norm() / move.norm() * move)
    return [(0.02 * x).to(torch.bfloat16) for x in found]


def merged(tensors: list[Tensor], anchor: int | None, ridge: float, precision: str) -> Tensor:
    """The merge, not rounded."""
    center = "geometric_median" if anchor is None else "anchor"
    options = Options(consensus="recall", center=center, ridge=ridge, recall_precision=precision)
    inputs = [problems(x, WHOLE) for x in tensors]
    out = torch.empty((1, *tensors[0].shape), dtype=torch.float64)
    span = span_of(inputs, center, anchor, options.eps, np.ones(len(inputs)))
    Recall().merge(inputs, span, options, anchor, "linear", Destination(out))
    return out[0]


def reached_at(tensors: list[Tensor], anchor: int | None, ridge: float) -> float:
    """The enlargement at which the worst element is off by as much as is promised."""
    heard: list[float] = []
    enlarged = LinearInputs.enlarged

    def hear(space: LinearInputs, total: Tensor, row: Tensor) -> Tensor:
        heard.append(float(enlarged(space, total, row).max()))
        return torch.zeros_like(row)  # stays in float32

    with patch.object(LinearInputs, "enlarged", hear):
        single, double = (merged(tensors, anchor, ridge, x) for x in ("auto", "float64"))
    size = double.abs().clamp(min=float(double.square().mean().sqrt()))
    step = torch.finfo(torch.bfloat16).eps / 2 * size
    return PROMISED * heard[0] / float(((single - double).abs() / step).max())


@click.command(help=__doc__.split("\n\n")[0])
@write_option
def main(write: bool) -> None:
    lines = ["| rank | 3 models | 5 | 8 |", "|---|---:|---:|---:|"]
    lowest = float("inf")
    for rank in track(RANKS, "ranks", console=Console(stderr=True)):
        cells = []
        for count in COUNTS:
            limits = [
                reached_at(
                    models(count, difference, shape, rank),
                    anchor,
                    count * shape[1] * difference / NOMINAL,
                )
                for shape, difference, anchor in product(SHAPES, DIFFERENCES, ANCHORS)
            ]
            cells.append(min(limits))
        lowest = min(lowest, *cells)
        lines.append(f"| {rank or 'full'} | " + " | ".join(f"{x:.0f}" for x in cells) + " |")
    show(lines, "recall.md", "recall-precision", write=write)
    worst = PROMISED * FLOAT32_ENLARGED / lowest
    click.echo(
        f"At FLOAT32_ENLARGED = {FLOAT32_ENLARGED:g} the worst is 1/{1 / worst:.0f} of a step."
    )


if __name__ == "__main__":
    main()
