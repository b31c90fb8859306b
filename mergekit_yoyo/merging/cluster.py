"""The parts of a merge as tasks of a Ray cluster whose nodes share the file systems."""

import os
import socket
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.merging.journal import DonePart
from mergekit_yoyo.merging.worker import Job, run_job
from mergekit_yoyo.merging.workers import (
    TRIES,
    WORKER_BYTES,
    WORKING_COPIES,
    Done,
    Told,
    lost_too_often,
)
from mergekit_yoyo.staging import format_bytes

CPUS_A_PART = 2
KNOCK_SECONDS = 10
# The first frame of either side of HTTP/2, which Ray speaks (RFC 9113, 3.4): length, type, flags.
_HTTP2_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _HTTP2_SETTINGS


class Cluster:
    """Workers on a Ray cluster.

    address: of the cluster, or `local`: the one that runs on this machine, else a new one. device:
    mergekit's; with a GPU each part asks for one. count: parts at once, at most; by default as many
    as fit.

    Raises:
        YoyoError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, device: str = "cpu", *, count: int | None = None) -> None:
        self._ray = _connected(address)
        self._device = device
        self._count = count
        self._memory = WORKER_BYTES

    @property
    def width(self) -> int:
        """Parts that fit into the cluster's CPUs or GPUs."""
        if self._count:
            return self._count
        resources = self._ray.cluster_resources()
        if self._on_gpu:
            return max(1, int(resources.get("GPU", 0)))
        return max(1, int(resources.get("CPU", 1)) // CPUS_A_PART)

    def prepare(self, jobs: int, largest: int) -> str:
        """Each part gets the memory that the largest tensor needs.

        Raises:
            YoyoError: no node has that, or a GPU where one is asked for.
        """
        self._memory = WORKER_BYTES + WORKING_COPIES * largest
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("memory", 0) >= self._memory for node in alive):
            most = format_bytes(int(max((node.get("memory", 0) for node in alive), default=0)))
            raise YoyoError(
                f"--ray: a part needs {format_bytes(self._memory)} for the largest tensor; the "
                f"largest node of the cluster offers {most}. Start a node with more (`ray start "
                "--memory`)."
            )
        if self._on_gpu and not any(node.get("GPU", 0) >= 1 for node in alive):
            raise YoyoError("--cuda: no node of the cluster has a GPU. Leave it out, or add one.")
        self._count = max(1, min(self.width, jobs))
        nodes = f"{len(alive)} node{'s' * (len(alive) > 1)}"
        return f"{self._count} parts at once on {nodes} of a Ray cluster"

    def run(self, jobs: Sequence[Job], tell: Callable[[int], None]) -> Generator[Done]:
        """Run the jobs; what a lost node was computing is repeated on another."""
        remote = self._ray.remote(
            num_cpus=1 if self._on_gpu else min(CPUS_A_PART, self._largest_node()),
            num_gpus=1 if self._on_gpu else 0,
            memory=self._memory,
            max_retries=TRIES,
        )(_work)
        told = Told(tell)
        waiting, running = list(jobs), dict[Any, Job]()
        while waiting or running:
            while waiting and len(running) < (self._count or 1):
                job = waiting.pop(0)
                running[remote.remote(job, self._device, str(Path.cwd()))] = job
            (ready,), _ = self._ray.wait(list(running), num_returns=1)
            job = running.pop(ready)
            done = self._result(ready, job)
            told.done(job.part.number, done)
            yield job, done

    def _result(self, ready: Any, job: Job) -> DonePart:
        errors = self._ray.exceptions
        try:
            done: DonePart = self._ray.get(ready)
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, YoyoError) else error) from None
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError):
            raise lost_too_often([job]) from None
        return done

    @property
    def _on_gpu(self) -> bool:
        return self._device.startswith("cuda")

    def _largest_node(self) -> int:
        return max(int(node["Resources"].get("CPU", 1)) for node in self._ray.nodes())


def _work(job: Job, device: str, folder: str) -> DonePart:
    os.chdir(folder)  # relative paths of the YAML are meant from where the command runs
    return run_job(job, device, lambda _: None)


def _connected(address: str) -> Any:
    # parts that fail beside the one whose error is told
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        import ray
    except ImportError:
        raise YoyoError("--ray: Ray is not installed: pip install ray.") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        _knock(address)
        if address != "local":
            ray.init(address=address, **options)
            return ray
        try:
            ray.init(address="auto", **options)
        except ConnectionError:  # none runs here yet
            ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise YoyoError(
            f"--ray {address}: no cluster answers ({reason}). Start one with `ray start --head`, "
            "or give the address that `ray status` knows."
        ) from None
    return ray


def _knock(address: str) -> None:
    """Ray itself asks for minutes before it says that nobody is there.

    Raises OSError if the host of an address `HOST:PORT` does not answer, or not in HTTP/2.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    with socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS) as connection:
        connection.sendall(_HTTP2_HELLO)
        answer = connection.recv(len(_HTTP2_SETTINGS), socket.MSG_WAITALL)
    if answer[3:4] != _HTTP2_SETTINGS[3:4]:
        raise OSError("what listens there is not Ray")
