"""Millions of weights a second that `--rounding` takes, by shape, on one core of a CPU.

    OPENBLAS_NUM_THREADS=1 python benchmarks/quant_speed.py             # --write: into docs/mlx.md

By the time of the processor, so that other work beside it does not count. `feedback` is without the
reading of the text.
"""

import time
from collections.abc import Callable

import click
import mlx.core as mx
import numpy as np
from pages import show, write_option

from mergekit_yoyo.mlx.rounding import Rounded, fed_forward, searched, searched_mxfp4

SHAPES = ((1536, 576), (2048, 2048), (1024, 4096))
BITS, GROUP = 4, 64


@click.command(help=__doc__.split("\n\n")[0])
@write_option
def main(write: bool) -> None:
    lines = ["| outputs x inputs | search | search, mxfp4 | feedback |", "|---|---:|---:|---:|"]
    random = np.random.default_rng(0)
    for outputs, inputs in SHAPES:
        weight = mx.array(random.standard_normal((outputs, inputs)) * 0.02).astype(mx.bfloat16)
        rows = random.standard_normal((2 * inputs, inputs)).astype(np.float32)
        moments = rows.T @ rows
        rates = (
            weight.size / 1e6 / seconds(run)
            for run in (
                lambda w=weight: searched(w, BITS, GROUP, mx.bfloat16),
                lambda w=weight: searched_mxfp4(w),
                lambda w=weight, m=moments: fed_forward(w, BITS, GROUP, mx.bfloat16, m),
            )
        )
        lines.append(f"| {outputs} x {inputs} | {' | '.join(f'{rate:.1f}' for rate in rates)} |")
    show(lines, "mlx.md", "quant-speed", write=write)


def seconds(run: Callable[[], Rounded]) -> float:
    """Of the processor, the packing with it."""
    started = time.process_time()
    mx.eval(run().packed(BITS))
    return time.process_time() - started


if __name__ == "__main__":
    main()
