"""What the BLAS below mlx's CPU build costs: one matrix product, with whatever is preloaded.

    python benchmarks/mlx_blas.py
    LD_PRELOAD=/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0 \\
        python benchmarks/mlx_blas.py
"""

import time

import click
import mlx.core as mx

ROWS, INPUTS, OUTPUTS, RUNS = 1024, 576, 1536, 3


@click.command(help="Times a float32 matrix product of mlx.")
def main() -> None:
    rows, weight = mx.random.normal((ROWS, INPUTS)), mx.random.normal((OUTPUTS, INPUTS))
    mx.eval(rows @ weight.T)
    start = time.perf_counter()
    for _ in range(RUNS):
        mx.eval(rows @ weight.T)
    seconds = (time.perf_counter() - start) / RUNS
    click.echo(f"{2 * ROWS * INPUTS * OUTPUTS / seconds / 1e9:.1f} GFLOP/s")


if __name__ == "__main__":
    main()
