"""A process that runs commands, each in a fork of its own, and lets one of their file operations
fail.

It reads a job a line as JSON from standard input, [arguments, folder to stand in, fault, number],
and answers with a line of JSON: the status (None if it died), what was said, the traceback of what
no sentence was made of, and the operation at which the fault struck (None: there are fewer).
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from hostile_child import LATE, run

from mergekit_yoyo.cli import COMMANDS

# What Python tells its audit hooks of: every operation on a file that is not done by native code.
CHANGES = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod"),
    *("os.utime", "os.truncate"),
}
NEEDS_SPACE = {"open for writing", "os.mkdir", "os.link", "os.symlink"}


def kill(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(path: str) -> None:
    raise KeyboardInterrupt


def full(path: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def broken(path: str) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), path)


# name -> (what happens, whether it strikes where files are read)
FAULTS: dict[str, tuple[Callable[[str], None], bool]] = {
    "killed": (kill, False),
    "interrupted": (interrupt, False),
    "disk full": (full, False),
    "I/O error": (broken, False),
    "read error": (broken, True),
}


class Struck:
    """An audit hook that lets the operation of a number under a folder fail.

    A full disk stays full; all other faults strike once.
    """

    def __init__(self, folder: str, fault: str, number: int) -> None:
        self.folder, self.fault, self.number = os.path.realpath(folder), fault, number
        self.at: str | None = None
        self._seen = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in CHANGES:
            return
        operation = event
        if event == "open":
            writes = (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            operation = "open for writing" if writes else "open"
        happens, reads = FAULTS[self.fault]
        if (operation == "open") != reads or not self._under(event, arguments):
            return
        if self.fault == "disk full" and operation not in NEEDS_SPACE:
            return
        self._seen += 1
        if self._seen > self.number and (self.at is None or self.fault == "disk full"):
            self.at = self.at or f"{operation} {arguments[0]}"
            happens(os.fsdecode(arguments[0]))

    def _under(self, event: str, arguments: tuple[Any, ...]) -> bool:
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a file that is open already
        path = os.fsdecode(path)
        relative_to_folder = isinstance(arguments[-1], int) and arguments[-1] >= 0
        if event in ("os.remove", "os.rmdir") and relative_to_folder:
            return True  # of a tree that is being removed
        return str(Path.cwd() / path).startswith(self.folder)


def run_struck(
    arguments: list[str], folder: str, fault: str | None, number: int
) -> dict[str, object]:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        struck = None
        if fault is not None:
            struck = Struck(folder, fault, number)
            sys.addaudithook(struck)
            if fault == "killed":  # it cannot tell afterwards
                os.write(theirs, b" ")
        outcome = run(arguments, folder)
        outcome["struck"] = struck and struck.at
        os.write(theirs, json.dumps(outcome).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as told:
        text = told.read().strip()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or not text:
        return {"status": None, "said": "", "raised": "", "struck": "killed"}
    return dict(json.loads(text))


@click.command("store")
def command() -> None:
    """Keep the results of two tasks as `evaluate` does when lm-eval has returned them."""
    from mergekit_yoyo.evaluation.store import ResultStore

    store = ResultStore(Path("scores"), {"limit": 3}, restart=False)
    for task in ("piqa", "boolq"):
        if not store.has(task, "hash"):
            result = {
                "config": {"limit": 3},
                "results": {task: {"acc,none": 0.5}},
                "total_evaluation_time_seconds": "1.0",
            }
            sample = {"arguments": [["a", "b"]], "resps": [[0.5]], "filtered_resps": [0.5]}
            sample |= {"target": 1, "doc_hash": "d", "prompt_hash": "p", "target_hash": "t"}
            store.add(task, "hash", result, {task: [sample]})


if __name__ == "__main__":
    COMMANDS["store"] = ("faults_child", "")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        arguments, folder, fault, number = json.loads(line)
        for module in (COMMANDS[arguments[0]][0], *LATE.get(arguments[0], ("lm_eval.utils",))):
            import_module(module)
        print(json.dumps(run_struck(arguments, folder, fault, number)), file=out)
