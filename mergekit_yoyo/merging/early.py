"""Workers that start while this process still imports what it needs; light itself.

A worker is a copy (fork) of a server process that has imported mergekit once. Started first thing,
that server imports on one core while the command imports and plans on another.
"""

import os
import signal
from multiprocessing import get_context
from multiprocessing.context import BaseContext

PRELOADED = ["mergekit_yoyo.merging.preload"]


def start_server() -> None:
    """Start the process that workers will be copied from, where the system has such a thing.

    Ctrl-C does not reach it nor them: the command ends its workers itself, see `workers`.
    """
    if os.name == "posix":
        from multiprocessing import forkserver, resource_tracker

        worker_context()
        resource_tracker.ensure_running()  # which would let signals through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_context() -> BaseContext:
    """How worker processes are started."""
    if os.name != "posix":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context
