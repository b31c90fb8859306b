"""Who computes the parts: processes on this machine, or a cluster (see `cluster`)."""

import os
import signal
import struct
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from threading import RLock, Thread
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import torch
from tqdm import tqdm

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.merging.early import start_server, worker_context
from mergekit_yoyo.merging.journal import DonePart
from mergekit_yoyo.merging.worker import Job, run_job
from mergekit_yoyo.staging import format_bytes

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

TRIES = 3  # of a part whose worker was lost
WORKER_BYTES = 450_000_000  # Python, torch and transformers
WORKING_COPIES = 3  # of a tensor's inputs: as read, as the method works on them, and the result

TOLD_SECONDS = 0.2  # between two looks at what the workers tell
_MESSAGE = struct.Struct("<qq")  # number of a part, and bytes

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

    def run(self, jobs: Sequence[Job], tell: Callable[[int], None]) -> Generator[Done]:
        """Run the jobs; yields each as it is done. tell: called with bytes that are done.

        Raises:
            YoyoError: a job fails, or loses its worker again and again.
        """


class Local:
    """Workers on this machine: this process where one is enough, else a process each.

    device: mergekit's; `cuda` is every GPU, a worker each. count: of workers; by default as many
    as cores and memory allow. memory: bytes that they may use together; by default four fifths of
    what is free. threads: of all workers together; by default as many as cores. A lost worker is
    replaced and its part repeated.
    """

    def __init__(
        self,
        device: str = "cpu",
        *,
        count: int | None = None,
        memory: int | None = None,
        threads: int | None = None,
    ) -> None:
        if threads and count and threads < count:
            raise YoyoError(f"--num-threads {threads}: {count} workers need a thread each.")
        self._devices = _devices(device)
        self._count = count
        self._bound = memory
        self._threads_given = threads
        self._cores = threads or _cores()

    @property
    def width(self) -> int:
        """As many as were asked for, or cores or GPUs there are."""
        if self._count:
            return self._count
        if self._devices != ("cpu",):
            return len(self._devices)
        return min(self._cores, 4 + self._cores // 4)  # beyond a few, a worker gains by threads

    def prepare(self, jobs: int, largest: int) -> str:
        """As many as fit into the memory, and not more than jobs."""
        each = WORKER_BYTES + WORKING_COPIES * largest
        memory = self._bound or psutil.virtual_memory().available * 4 // 5
        if memory < each:
            raise YoyoError(
                f"memory: one worker needs about {format_bytes(each)}, {WORKING_COPIES} times the "
                f"inputs of the largest tensor among them; "
                + (
                    f"--memory gives {format_bytes(memory)}. Give more."
                    if self._bound
                    else f"{format_bytes(memory)} are free for it. End other programs, or use a "
                    "machine with more."
                )
            )
        self._count = max(1, min(self.width, memory // each, jobs))
        threads = self._threads
        return (
            f"{self._count} worker{'s' * (self._count > 1)} on {', '.join(self._devices)}, "
            f"{threads} thread{'s' * (threads > 1)} and at most {format_bytes(each)} each"
        )

    def run(self, jobs: Sequence[Job], tell: Callable[[int], None]) -> Generator[Done]:
        """Run the jobs."""
        told = Told(tell)
        if self._count == 1:
            return self._run_here(jobs, told)
        return self._run_in_processes(jobs, told)

    @property
    def _threads(self) -> int:
        if self._count == 1 and not self._threads_given:
            return torch.get_num_threads()  # this process stays as it is
        return max(1, self._cores // (self._count or 1))

    def _run_here(self, jobs: Sequence[Job], told: "Told") -> Generator[Done]:
        if self._threads_given:
            torch.set_num_threads(self._threads_given)
        for job in jobs:
            done = run_job(job, self._devices[0], partial(told.more, job.part.number))
            told.done(job.part.number, done)
            yield job, done

    def _run_in_processes(self, jobs: Sequence[Job], told: "Told") -> Generator[Done]:
        waiting, tries = list(jobs), 0
        while tries < TRIES:
            lost: list[Job] = []
            # one that kills its worker takes those beside it along: then each alone, until one ends
            with self._pool(1 if tries else self._count or 1) as (pool, messages):
                running = {pool.submit(_work, job): job for job in waiting}
                while running:
                    ended, _ = wait(running, TOLD_SECONDS, FIRST_COMPLETED)
                    while messages.poll():
                        told.more(*_MESSAGE.unpack(messages.recv_bytes()))
                    for future in ended:
                        job = running.pop(future)
                        try:
                            done = future.result()
                        except BrokenProcessPool:
                            told.lost(job.part.number)
                            lost.append(job)
                            continue
                        told.done(job.part.number, done)
                        yield job, done
            if not lost:
                return
            tries = 0 if len(lost) < len(waiting) else tries + 1
            order = [job.part.number for job in waiting]
            lost.sort(key=lambda job: order.index(job.part.number))
            waiting = [*lost[1:], lost[0]]  # which was being computed: the others go first
        raise lost_too_often(waiting)

    @contextmanager
    def _pool(self, count: int) -> "Iterator[tuple[ProcessPoolExecutor, Connection]]":
        """Workers, and what they tell. When anything fails here, they end at once."""
        start_server()
        context = worker_context()
        devices = context.SimpleQueue()
        for k in range(count):
            devices.put(self._devices[k % len(self._devices)])
        messages, telling = context.Pipe(duplex=False)
        leased, lease = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(
            count,
            mp_context=context,
            initializer=_begin,
            initargs=(devices, self._threads, telling, leased),
        )
        try:
            yield pool, messages
        except BaseException:
            lease.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            for end in (messages, telling, leased, lease):
                end.close()


class Told:
    """The bytes of each part that the progress was told of, so that none is counted twice."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._parts: Counter[int] = Counter()

    def more(self, part: int, size: int) -> None:
        """So many bytes more of a part are computed."""
        self._parts[part] += size
        self._tell(size)

    def done(self, part: int, done: DonePart) -> None:
        """A part is done: what of it was not told is."""
        self._tell(sum(done.tensors.values()) - self._parts.pop(part, 0))

    def lost(self, part: int) -> None:
        """A part is computed again."""
        self._tell(-self._parts.pop(part, 0))


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
_telling: "Connection | None" = None


def _begin(devices: Any, threads: int, telling: "Connection", leased: "Connection") -> None:
    """Once a process: its device, its share of the threads, whom to tell, and how long it lives."""
    global _device, _telling
    _device, _telling = devices.get(), telling
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent ends us
    Thread(target=_end_with_lease, args=[leased], daemon=True).start()
    tqdm.set_lock(RLock())  # its own would be of processes, and left behind by one that is ended
    torch.set_num_threads(threads)


def _end_with_lease(leased: "Connection") -> None:
    """A pool's workers outlive a parent that fails or is killed, and would end their parts."""
    with suppress(EOFError, OSError):
        leased.recv_bytes()  # nothing ever comes: it ends when the parent closes its end, or dies
    os._exit(1)


def _work(job: Job) -> DonePart:
    return run_job(job, _device, partial(_tell_parent, job.part.number))


def _tell_parent(part: int, size: int) -> None:
    assert _telling is not None
    _telling.send_bytes(_MESSAGE.pack(part, size))  # few bytes: one write, which needs no lock
