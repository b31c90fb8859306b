"""What `consensus: recall` costs, in units of this machine's own matrix products.

    python benchmarks/recall_speed.py [--device cuda]   # a minute; --write: and into docs/recall.md

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

import click
import torch
from pages import show, write_option

from mergekit_yoyo import fuse
from mergekit_yoyo.algorithm.spaces import WIDE

SHAPES = ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (4096, 2048), (1024, 4096))
PRODUCT = 3072  # size of the square product that sets the rate
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


def seconds(work: Callable[[], object], device: str) -> float:
    """The best of some runs, after one to warm up."""
    best = float("inf")
    for repeat in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        if repeat:
            best = min(best, time.perf_counter() - started)
    return best


def times_as_long(tensors: list[torch.Tensor], device: str) -> float:
    """Float64 beside what `auto` chooses: the median of ratios, of one run of each in turn."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    ratios = []
    for _ in range(2 * REPEATS + 1):
        taken = []
        for precision in ("auto", "float64"):
            started = clock()
            fuse(tensors, consensus="recall", recall_precision=precision)
            if device != "cpu":
                torch.cuda.synchronize()
            taken.append(clock() - started)
        ratios.append(taken[1] / taken[0])
    return statistics.median(ratios)


def rate(dtype: torch.dtype, device: str) -> float:
    a, b = (torch.randn(PRODUCT, PRODUCT, dtype=dtype, device=device) for _ in range(2))
    return 2 * PRODUCT**3 / seconds(lambda: a @ b, device)


def peak_beyond(outputs: int, inputs: int, count: int, device: str, precision: str) -> int:
    """Bytes beyond inputs and output, measured in a process of its own on the CPU."""
    if device != "cpu":
        tensors = fine_tunes(outputs, inputs, count, device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fuse(tensors, consensus="recall", recall_precision=precision)
        return torch.cuda.max_memory_allocated() - before - tensors[0].nbytes
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
@click.option("--device", default="cpu", show_default=True)
@write_option
def main(count: int, device: str, write: bool) -> None:
    click.echo("products of this machine ...", err=True)
    double, single = (rate(dtype, device) for dtype in (torch.float64, torch.float32))
    lines = [
        f"| outputs x inputs | seconds | of {double / 1e9:,.0f} GFLOP/s, float64 | "
        f"of {single / 1e9:,.0f}, float32 | memory, in inputs x inputs of float32 | "
        "in float64, times as long | times as much memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for outputs, inputs in SHAPES:
        click.echo(f"{outputs} x {inputs} ...", err=True)
        tensors = fine_tunes(outputs, inputs, count, device)
        taken = seconds(lambda: fuse(tensors, consensus="recall"), device)  # noqa: B023
        longer = times_as_long(tensors, device)
        reached = operations(outputs, inputs, count) / taken
        memory, more = (
            peak_beyond(outputs, inputs, count, device, precision) / (4 * inputs**2)
            for precision in ("auto", "float64")
        )
        lines.append(
            f"| {outputs} x {inputs} | {taken:.2f} | {reached / double:.2f} | "
            f"{reached / single:.2f} | {memory:.1f} | {longer:.2f} | {more / memory:.2f} |"
        )
    show(lines, "recall.md", "recall-speed", write=write)


if __name__ == "__main__":
    main()
