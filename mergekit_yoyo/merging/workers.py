"""Who computes the parts: processes on this machine, or a cluster (see `cluster`)."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from threading import Thread
from typing import Any, Protocol

import psutil

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.merging.early import worker_context
from mergekit_yoyo.merging.journal import DonePart
from mergekit_yoyo.merging.worker import Job, run_job
from mergekit_yoyo.staging import format_bytes

TRIES = 3  # of a part whose worker was lost
WORKER_BYTES = 450_000_000  # Python, torch and transformers
WORKING_COPIES = 3  # of a tensor's inputs: as read, as the method works on them, and the result

Done = tuple[Job, DonePart]


class Crew(Protocol):
    """Runs jobs wherever its workers are."""

    @property
    def width(self) -> int:
        """How many jobs it could run at once: so many parts there should be at least."""

    def prepare(self, jobs: int, largest: int) -> str:
        """Settle how many workers there are, and say so in words.

        largest: bytes of the inputs of the largest tensor.

        Raises:
            YoyoError: not even one worker fits.
        """

    def run(self, jobs: Sequence[Job], tell: Callable[[int], None]) -> Iterator[Done]:
        """Run the jobs; yields each as it is done. tell: called with bytes that are done.

        Raises:
            YoyoError: a job fails, or loses its worker again and again.
        """


class Local:
    """Workers on this machine: this process where one is enough, else a process each.

    device: mergekit's; `cuda` is every GPU, a worker each. count: of workers; by default as many
    as cores and memory allow. memory: bytes that they may use together; by default four fifths of
    what is free. A lost worker is replaced and its part repeated.
    """

    def __init__(
        self, device: str = "cpu", *, count: int | None = None, memory: int | None = None
    ) -> None:
        self._devices = _devices(device)
        self._count = count
        self._memory = memory or psutil.virtual_memory().available * 4 // 5

    @property
    def width(self) -> int:
        """As many as were asked for, or cores or GPUs there are."""
        if self._count:
            return self._count
        if self._devices != ("cpu",):
            return len(self._devices)
        return min(_cores(), 4 + _cores() // 4)  # beyond a few, a worker gains by threads

    def prepare(self, jobs: int, largest: int) -> str:
        """As many as fit into the memory, and not more than jobs."""
        each = WORKER_BYTES + WORKING_COPIES * largest
        fitting = self._memory // each
        if fitting < 1:
            raise YoyoError(
                f"--memory: one worker needs about {format_bytes(each)} for the largest tensor; "
                f"got {format_bytes(self._memory)}. Use a machine with more memory."
            )
        self._count = max(1, min(self.width, fitting, jobs))
        threads = self._threads
        return (
            f"{self._count} worker{'s' * (self._count > 1)} on {', '.join(self._devices)}, "
            f"{threads} thread{'s' * (threads > 1)} and at most {format_bytes(each)} each"
        )

    def run(self, jobs: Sequence[Job], tell: Callable[[int], None]) -> Iterator[Done]:
        """Run the jobs."""
        if self._count == 1:
            return ((job, run_job(job, self._devices[0], tell)) for job in jobs)
        return self._run_in_processes(jobs, tell)

    @property
    def _threads(self) -> int:
        return max(1, _cores() // (self._count or 1))

    def _run_in_processes(self, jobs: Sequence[Job], tell: Callable[[int], None]) -> Iterator[Done]:
        waiting, tries = list(jobs), 0
        while tries < TRIES:
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
            # a part that kills its worker is left at last, and no round gets on any more
            tries = 0 if len(lost) < len(waiting) else tries + 1
            waiting = lost
        raise lost_too_often(waiting)

    def _pool(self) -> ProcessPoolExecutor:
        context = worker_context()
        devices = context.SimpleQueue()
        for k in range(self._count or 1):
            devices.put(self._devices[k % len(self._devices)])
        return ProcessPoolExecutor(
            self._count,
            mp_context=context,
            initializer=_begin,
            initargs=(devices, self._threads),
        )


def lost_too_often(jobs: Sequence[Job]) -> YoyoError:
    """The error for parts that no worker survived."""
    names = ", ".join(job.part.file for job in jobs[:3])
    return YoyoError(
        f"{names}: the worker was killed {TRIES} times, most likely for memory. Give fewer "
        "--workers; what is done is kept."
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # what a container or taskset leaves us
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _devices(device: str) -> tuple[str, ...]:
    if device in ("cuda", "xpu"):
        from mergekit.common import get_torch_accelerator_count

        return tuple(f"{device}:{k}" for k in range(get_torch_accelerator_count())) or (device,)
    return (device,)


_device = "cpu"


def _begin(devices: Any, threads: int) -> None:
    """Once a process: its device, and its share of the threads."""
    global _device
    import torch

    _device = devices.get()
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    """A pool's workers outlive a parent that is killed, and would go on to the last part."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: Job) -> DonePart:
    return run_job(job, _device, lambda _: None)
