"""The command in a process that says when it has come to a point, and waits there for a signal."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The function is the real one: after its first return the process tells so through a pipe, and goes
# on when another pipe closes. A signal finds it in that read, wherever and whenever it runs.
DRIVER = r"""
import os, pkgutil, re, signal, sys
from mergekit_yoyo.cli import main

# a process that a shell starts in the background ignores it, and so do its children
signal.signal(signal.SIGINT, signal.default_int_handler)

place, reached, released, *arguments = sys.argv[1:]
module_or_class, name = re.fullmatch(r"(.+)[.:](\w+)", place).groups()
holder = pkgutil.resolve_name(module_or_class)
real = getattr(holder, name)

def stopping(*given, **named):
    result = real(*given, **named)
    setattr(holder, name, real)
    os.write(int(reached), b"!")
    os.read(int(released), 1)
    return result

setattr(holder, name, stopping)
main(arguments, prog_name="mergekit-yoyo")
"""


@contextmanager
def stopped_after(
    place: str, arguments: Sequence[str | Path], **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """`mergekit-yoyo ARGUMENTS`, stopped where it has called a function for the first time.

    Args:
        place: the function, `module:Class.method` or `module:function`.
        options: of `subprocess.Popen`; `stderr` is a pipe by default.

    Yields:
        The process, which stands there until it gets a signal or this context ends. It fails the
        test if the process ends before it comes to `place`.
    """
    reached, tell = os.pipe()
    released, release = os.pipe()
    command = [sys.executable, "-c", DRIVER, place, str(tell), str(released)]
    with subprocess.Popen(
        [*command, *map(str, arguments)],
        **{"stderr": subprocess.PIPE, "pass_fds": (tell, released), **options},
    ) as process:
        os.close(tell)
        os.close(released)
        try:
            if not os.read(reached, 1):  # the other end closed: the process has ended
                said = process.stderr.read().decode() if process.stderr else ""
                raise AssertionError(f"{place} was never called: {said}")
            yield process
        finally:
            os.close(release)
            os.close(reached)
