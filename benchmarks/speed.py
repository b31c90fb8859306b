"""Times of the merge kernels, as ratios measured in one run.

    python benchmarks/speed.py

For K bfloat16 tensors of 4096 x 4096: the time of `fuse` and of mergekit's `linear` in units of the
memory-bandwidth floor (every input read twice, the output written once, at the copy bandwidth of
this machine), and the peak memory of `fuse` beyond inputs and output. The best of several rounds,
all contenders taking turns in each.
"""

import resource
import time
from collections.abc import Callable

import click
import torch
from mergekit.merge_methods import merge_tensors

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


def peak_scratch(tensors: list[torch.Tensor], center: str) -> int:
    """Bytes by which a call raises the process's peak memory, less its output."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuse(tensors, center=center, anchor=0 if center == "anchor" else None)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) * 1024 - tensors[0].nbytes


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--counts", default="2,3,5,8", show_default=True, help="Numbers of inputs K.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--size", default=4096, show_default=True, help="Rows and columns.")
def main(counts: str, rounds: int, size: int) -> None:
    torch.manual_seed(0)
    kernels: dict[str, Callable[[list[torch.Tensor]], object]] = {
        "linear": lambda x: merge_tensors(x, "linear", parameters={"weight": 1.0}),
        "geometric median": lambda x: fuse(x),
        "anchor": lambda x: fuse(x, center="anchor", anchor=0),
        "coordinate median": lambda x: fuse(x, center="coordinate_median"),
    }
    click.echo(f"{torch.get_num_threads()} threads, times in floors (and in times of linear)\n")
    click.echo("| K | floor | " + " | ".join(kernels) + " | scratch |")
    click.echo("|---|---:|" + "---:|" * len(kernels) + "---:|")
    scratch_before = 0
    for count in map(int, counts.split(",")):
        tensors = fine_tunes(count, (size, size))
        source = torch.cat([x.flatten() for x in tensors[:2]])
        target = torch.empty_like(source)
        fuse([x[:64] for x in tensors])
        scratch_before = max(scratch_before, peak_scratch(tensors, "geometric_median"))
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
        click.echo(
            f"| {count} | {floor * 1e3:.1f} ms | "
            + " | ".join(cells)
            + f" | {scratch_before / MIB:.0f} MiB |"
        )


if __name__ == "__main__":
    main()
