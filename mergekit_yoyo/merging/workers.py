"""Who computes the parts: processes on this machine, or a cluster (see `cluster`)."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, Protocol

import psutil

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.merging.journal import DonePart
from mergekit_yoyo.merging.worker import Job, run_job

TRIES = 3  # of a part whose worker was lost
PRELOADED = ["mergekit.merge", "mergekit_yoyo.merging.worker"]
WORKER_BYTES = 450_000_000  # Python, torch and transformers
WORKING_COPIES = 6  # a tensor's inputs, float copies and result, in units of its own size

Done = tuple[Job, DonePart]


@dataclass(frozen=True)
class Workers:
    """How many processes, on what, with which share of the machine's threads and memory.

    devices: for the arithmetic, one a worker. threads: of each. memory: bytes for all of them.
    """

    devices: tuple[str, ...]
    threads: int
    memory: int

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.devices)

    def __str__(self) -> str:
        kinds = ", ".join(dict.fromkeys(self.devices))
        plural = "s" if self.count > 1 else ""
        each = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.count} worker{plural} on {kinds}, {each} each"


def choose_workers(
    device: str, largest: int, *, count: int | None = None, memory: int | None = None
) -> Workers:
    """As many workers as cores, memory and device allow, or as the user says.

    device: mergekit's. largest: bytes of the largest tensor of the merge, with those of all its
    inputs. memory: bytes that they may use; by default four fifths of what is free.

    Raises:
        YoyoError: not even one worker fits.
    """
    memory = memory or psutil.virtual_memory().available * 4 // 5
    each = WORKER_BYTES + WORKING_COPIES * largest
    cores = _cores()
    devices = _devices(device)
    fitting = memory // each
    if fitting < 1:
        raise YoyoError(
            f"--memory: one worker needs about {each / 1e9:.1f} GB for the largest tensor; got "
            f"{memory / 1e9:.1f} GB. Use a larger machine."
        )
    if devices == ("cpu",):
        wanted = count or (cores if cores <= 4 else cores // 2)
        number = max(1, min(wanted, fitting))
        devices *= number
    else:
        devices = (devices * (count or 1))[: count or len(devices)]
    return Workers(devices, max(1, cores // len(devices)), memory)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # what a container or taskset leaves us
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _devices(device: str) -> tuple[str, ...]:
    """`cuda` is every GPU; a device with a number is that one."""
    if device in ("cuda", "xpu"):
        from mergekit.common import get_torch_accelerator_count

        return tuple(f"{device}:{k}" for k in range(get_torch_accelerator_count()))
    return (device,)


class Crew(Protocol):
    """Runs jobs wherever its workers are; yields each as it is done."""

    def run(self, jobs: Sequence[Job], tell: Callable[[int], None]) -> Iterator[Done]:
        """Run the jobs. tell: called with bytes as tensors are done, from any thread."""


class Processes:
    """Workers on this machine, a process each; a lost one is replaced and its part repeated."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._context = get_context("forkserver" if os.name == "posix" else "spawn")
        if os.name == "posix":
            self._context.set_forkserver_preload(PRELOADED)

    def run(self, jobs: Sequence[Job], tell: Callable[[int], None]) -> Iterator[Done]:
        """Run the jobs.

        Raises:
            YoyoError: a job fails, or loses its worker again and again.
        """
        waiting = list(jobs)
        for _ in range(TRIES):
            lost: list[Job] = []
            with self._pool() as pool:
                futures: dict[Future[DonePart], Job] = {
                    pool.submit(_work, job): job for job in waiting
                }
                try:
                    for future in as_completed(futures):
                        try:
                            done = future.result()
                        except BrokenProcessPool:
                            lost.append(futures[future])
                            continue
                        tell(sum(done.tensors.values()))
                        yield futures[future], done
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            if not lost:
                return
            waiting = lost
        names = ", ".join(job.part.file for job in waiting[:3])
        raise YoyoError(
            f"{names}: its worker was killed {TRIES} times, most likely for memory. Give fewer "
            "--workers or less --memory; what is done is kept."
        )

    def _pool(self) -> ProcessPoolExecutor:
        devices = self._context.SimpleQueue()
        for device in self._workers.devices:
            devices.put(device)
        return ProcessPoolExecutor(
            self._workers.count,
            mp_context=self._context,
            initializer=_begin,
            initargs=(devices, self._workers.threads),
        )


_device = "cpu"


def _begin(devices: Any, threads: int) -> None:
    """Once a process: its device, and its share of the threads."""
    global _device
    import torch

    _device = devices.get()
    torch.set_num_threads(threads)


def _work(job: Job) -> DonePart:
    return run_job(job, _device, lambda _: None)


class Here:
    """The one worker that is this process."""

    def __init__(self, device: str) -> None:
        self._device = device

    def run(self, jobs: Sequence[Job], tell: Callable[[int], None]) -> Iterator[Done]:
        """Run the jobs one after the other."""
        for job in jobs:
            yield job, run_job(job, self._device, tell)


def crew_of(workers: Workers) -> Crew:
    """Processes, or this one where one is enough."""
    return Here(workers.devices[0]) if workers.count == 1 else Processes(workers)


def with_count(workers: Workers, jobs: int) -> Workers:
    """Not more workers than jobs, each with its share of the threads."""
    count = max(1, min(workers.count, jobs))
    threads = max(workers.threads, workers.threads * workers.count // count)
    return replace(workers, devices=workers.devices[:count], threads=threads)
