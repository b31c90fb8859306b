"""Times of the merge kernels, as ratios measured in one run.

    python benchmarks/speed.py                              # --write: and into docs/numbers.md
    python benchmarks/speed.py --device cuda --size 8192

For K bfloat16 tensors of 4096 x 4096: the time of `fuse` and of mergekit's `linear` in units of the
memory-bandwidth floor (every input read twice, the output written once, at the copy bandwidth of
this machine), and the peak memory of `fuse` beyond inputs and output. The best of several rounds,
all contenders taking turns in each.
"""

from collections.abc import Callable

import click
import torch
from devices import device_option, machine, peak_on_gpu, seconds
from mergekit.merge_methods import merge_tensors
from pages import show, write_option
from torch.profiler import ProfilerActivity, profile

from mergekit_yoyo import fuse

MIB = 2**20


def fine_tunes(count: int, shape: tuple[int, int], device: str) -> list[torch.Tensor]:
    """Tensors that differ from a common one by a tenth of its size."""
    base = torch.randn(shape, device=device) * 0.02
    noises = (torch.randn(shape, device=device) for _ in range(count))
    return [(base + 0.002 * noise).to(torch.bfloat16) for noise in noises]


def peak_scratch(run: Callable[[], object], output: int, device: str) -> int:
    """Bytes that torch had allocated at once during a call, less its output."""
    if device == "cuda":
        return peak_on_gpu(run) - output
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
@device_option
@write_option
def main(counts: str, rounds: int, size: int, device: str, write: bool) -> None:
    torch.manual_seed(0)
    kernels: dict[str, Callable[[list[torch.Tensor]], object]] = {
        "linear": lambda x: merge_tensors(x, "linear", parameters={"weight": 1.0}),
        "geometric median": lambda x: fuse(x),
        "anchor": lambda x: fuse(x, center="anchor", anchor=0),
        "coordinate median": lambda x: fuse(x, center="coordinate_median"),
        "rounding: stochastic": lambda x: fuse(x, rounding="stochastic"),
    }
    table = [
        f"| {size} x {size}, {machine(device)}: K | floor | "
        + " | ".join(kernels)
        + " | scratch |",
        "|---|---:|" + "---:|" * len(kernels) + "---:|",
    ]
    for count in map(int, counts.split(",")):
        tensors = fine_tunes(count, (size, size), device)
        source = torch.cat([x.flatten() for x in tensors[:2]])
        target = torch.empty_like(source)
        best = dict.fromkeys([*kernels, "copy"], float("inf"))
        for _ in range(rounds):
            best["copy"] = min(best["copy"], seconds(lambda: target.copy_(source), device))  # noqa: B023
            for name, kernel in kernels.items():
                taken = seconds(lambda: kernel(tensors), device)  # noqa: B023
                best[name] = min(best[name], taken)
        bandwidth = 2 * source.nbytes / best["copy"]
        floor = (2 * count + 1) * tensors[0].nbytes / bandwidth
        cells = [
            f"{best[name] / floor:.1f} ({best[name] / best['linear']:.2f})" for name in kernels
        ]
        scratch = max(
            peak_scratch(lambda: kernel(tensors), tensors[0].nbytes, device)  # noqa: B023
            for name, kernel in kernels.items()
            if name != "linear"
        )
        click.echo(f"K = {count} done", err=True)
        table.append(
            f"| {count} | {floor * 1e3:.2f} ms | "
            + " | ".join(cells)
            + f" | {scratch / MIB:.1f} MiB |"
        )
    show(table, "numbers.md", f"speed-{device}", write=write)


if __name__ == "__main__":
    main()
