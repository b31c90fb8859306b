"""Where a benchmark computes: what a table calls it, and a clock and a scale that wait for it."""

import time
from collections.abc import Callable

import click
import torch

device_option = click.option(
    "--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"])
)


def machine(device: str) -> str:
    """The GPU by its name, or how many threads compute."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads"


def wait_for(device: str) -> None:
    """Until it has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(
    work: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Of one call, until the device is done with it."""
    wait_for(device)
    started = clock()
    work()
    wait_for(device)
    return clock() - started


def peak_on_gpu(work: Callable[[], object]) -> int:
    """Bytes that torch had on the GPU at once during a call, beyond those before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before
