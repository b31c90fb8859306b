"""What `consensus: recall` costs, in units of this machine's own matrix products.

    python benchmarks/recall_speed.py                   # a minute; --write: and into docs/recall.md
    python benchmarks/recall_speed.py --device cuda     # shapes of Llama 8B

For each shape of weight: seconds, the rate of the floating-point operations that recall needs (K
Gram matrices and products, Cholesky, solve) as a share of the rate of one large float64, and one
float32, product on the same machine in the same run, the memory beyond inputs and output in units
of one inputs x inputs matrix of float32, and how much more of both it takes in float64 (the time by
processor seconds of runs in turn, so that other work on the machine matters less).
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import click
import torch
from devices import device_option, machine, peak_on_gpu, seconds
from pages import show, write_option

from mergekit_yoyo import fuse
from mergekit_yoyo.algorithm.spaces import WIDE

SHAPES = {
    "cpu": ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (4096, 2048), (1024, 4096)),
    "cuda": ((1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336)),
}
PRODUCT = {"cpu": 3072, "cuda": 8192}  # size of the square product that sets the rate
REPEATS = 3


def operations(outputs: int, inputs: int, count: int) -> float:
    """Floating-point operations of recall's products and solve on one matrix."""
    gram = 2 * inputs**2 * outputs
    product = 4 * outputs**2 * inputs if inputs >= WIDE * outputs else gram
    return count * (gram + product) + inputs**3 / 3 + 2 * inputs**2 * outputs


def fine_tunes(outputs: int, inputs: int, count: int, device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(outputs, inputs, device=device)
    moved = (base + 0.02 * torch.randn(outputs, inputs, device=device) for _ in range(count))
    return [x.bfloat16() for x in moved]


def merging(tensors: list[torch.Tensor], precision: str = "auto") -> Callable[[], object]:
    return partial(fuse, tensors, consensus="recall", recall_precision=precision)


def best(work: Callable[[], object], device: str) -> float:
    """Seconds, the best of some runs, after one to warm up."""
    return min([seconds(work, device) for _ in range(REPEATS + 1)][1:])


def times_as_long(tensors: list[torch.Tensor], device: str) -> float:
    """Float64 beside what `auto` chooses: the median of ratios, of one run of each in turn."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    ratios = []
    for _ in range(2 * REPEATS + 1):
        single, double = (
            seconds(merging(tensors, precision), device, clock) for precision in ("auto", "float64")
        )
        ratios.append(double / single)
    return statistics.median(ratios)


def rate(dtype: torch.dtype, device: str) -> float:
    size = PRODUCT[device]
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / best(lambda: a @ b, device)


def peak_beyond(outputs: int, inputs: int, count: int, device: str, precision: str) -> int:
    """Bytes beyond inputs and output, measured in a process of its own on the CPU."""
    if device == "cuda":
        tensors = fine_tunes(outputs, inputs, count, device)
        return peak_on_gpu(merging(tensors, precision)) - tensors[0].nbytes
    script = (
        "import resource, sys, torch\n"
        f"sys.path.insert(0, {sys.path[0]!r})\n"
        "from recall_speed import fine_tunes, fuse\n"
        f"fuse(fine_tunes(64, 64, {count}, 'cpu'), consensus='recall')\n"
        f"tensors = fine_tunes({outputs}, {inputs}, {count}, 'cpu')\n"
        "with open('/proc/self/clear_refs', 'w') as file: file.write('5')\n"
        "status = lambda key: next(int(line.split()[1]) for line in open('/proc/self/status')"
        " if line.startswith(key))\n"
        "before = status('VmRSS')\n"
        f"fuse(tensors, consensus='recall', recall_precision={precision!r})\n"
        "print((status('VmHWM') - before) * 1024 - tensors[0].nbytes)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(run.stdout)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--count", default=3, show_default=True, help="Models.")
@device_option
@write_option
def main(count: int, device: str, write: bool) -> None:
    click.echo("products of this machine ...", err=True)
    double, single = (rate(dtype, device) for dtype in (torch.float64, torch.float32))
    lines = [
        f"| {machine(device)}: outputs x inputs | milliseconds | "
        f"of {double / 1e9:,.0f} GFLOP/s, float64 | of {single / 1e9:,.0f}, float32 | "
        "memory, in inputs x inputs of float32 | "
        "in float64, times as long | times as much memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for outputs, inputs in SHAPES[device]:
        click.echo(f"{outputs} x {inputs} ...", err=True)
        tensors = fine_tunes(outputs, inputs, count, device)
        taken = best(merging(tensors), device)
        longer = times_as_long(tensors, device)
        reached = operations(outputs, inputs, count) / taken
        memory, more = (
            peak_beyond(outputs, inputs, count, device, precision) / (4 * inputs**2)
            for precision in ("auto", "float64")
        )
        lines.append(
            f"| {outputs} x {inputs} | {taken * 1e3:.3g} | {reached / double:.2f} | "
            f"{reached / single:.2f} | {memory:.1f} | {longer:.2f} | {more / memory:.2f} |"
        )
    show(lines, "recall.md", f"recall-speed-{device}", write=write)


if __name__ == "__main__":
    main()
