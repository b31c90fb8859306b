"""Times of the merge kernels, as ratios measured in one run.

    python benchmarks/speed.py

For K bfloat16 tensors of 4096 x 4096: the time of `fuse` and of mergekit's `linear` in units of the
memory-bandwidth floor (every input read twice, the output written once, at the copy bandwidth of
this machine), and the peak memory of `fuse` beyond inputs and output. The best of several rounds,
all contenders taking turns in each.
"""

import time
from collections.abc import Callable

import click
import torch
from mergekit.merge_methods import merge_tensors
from pages import show, write_option
from torch.profiler import ProfilerActivity, profile

from mergekit_yoyo import fuse

MIB = 2**20


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fine_tunes(count: int, shape: tuple[int, int]) -> list[torch.Tensor]:
    """Tensors that differ from a common one by a tenth of its size."""
    base = torch.randn(shape) * 0.02
    return [(base + 0.002 * torch.randn(shape)).to(torch.bfloat16) for _ in range(count)]


def peak_scratch(run: Callable[[], object], output: int) -> int:
    """Bytes that torch had allocated at once during a call, less its output."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak - output


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--counts", default="2,3,5,8", show_default=True, help="Numbers of inputs K.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--size", default=4096, show_default=True, help="Rows and columns.")
@write_option
def main(counts: str, rounds: int, size: int, write: bool) -> None:
    torch.manual_seed(0)
    kernels: dict[str, Callable[[list[torch.Tensor]], object]] = {
        "linear": lambda x: merge_tensors(x, "linear", parameters={"weight": 1.0}),
        "geometric median": lambda x: fuse(x),
        "anchor": lambda x: fuse(x, center="anchor", anchor=0),
        "coordinate median": lambda x: fuse(x, center="coordinate_median"),
    }
    click.echo(f"{torch.get_num_threads()} threads, times in floors (and in times of linear)\n")
    table = [
        "| K | floor | " + " | ".join(kernels) + " | scratch |",
        "|---|---:|" + "---:|" * len(kernels) + "---:|",
    ]
    for count in map(int, counts.split(",")):
        tensors = fine_tunes(count, (size, size))
        source = torch.cat([x.flatten() for x in tensors[:2]])
        target = torch.empty_like(source)
        best = dict.fromkeys([*kernels, "copy"], float("inf"))
        for _ in range(rounds):
            best["copy"] = min(best["copy"], seconds(lambda: target.copy_(source)))  # noqa: B023
            for name, kernel in kernels.items():
                best[name] = min(best[name], seconds(lambda: kernel(tensors)))  # noqa: B023
        bandwidth = 2 * source.nbytes / best["copy"]
        floor = (2 * count + 1) * tensors[0].nbytes / bandwidth
        cells = [
            f"{best[name] / floor:.1f} ({best[name] / best['linear']:.2f})" for name in kernels
        ]
        scratch = max(
            peak_scratch(lambda: kernel(tensors), tensors[0].nbytes)  # noqa: B023
            for name, kernel in kernels.items()
            if name != "linear"
        )
        click.echo(f"K = {count} done", err=True)
        table.append(
            f"| {count} | {floor * 1e3:.1f} ms | "
            + " | ".join(cells)
            + f" | {scratch / MIB:.1f} MiB |"
        )
    show(table, "numbers.md", "speed", write=write)


if __name__ == "__main__":
    main()
