"""The terminal: the one place that knows its width and its color, and shows long work on it.

Where a stream is no terminal (a pipe, a log of CI), each remark is one line, tables are as wide as
they need, and long work leaves a line a step and at most about ten more for a long one. Color is
rich's decision: `NO_COLOR` and `FORCE_COLOR` do what they do everywhere.
"""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mergekit_yoyo.staging import format_bytes

PIPED_WIDTH = 160  # a pipe has no width: room for the widest of our tables
_LINES = 10  # that a step leaves in a log, at most


def stdout_console() -> Console:
    """For what a command was asked for. Text is printed as it is: names may hold brackets."""
    return _console(stderr=False)


def stderr_console() -> Console:
    """For notes and progress, which a pipe must not swallow."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        markup=False,
        highlight=False,
        soft_wrap=piped,
        width=PIPED_WIDTH if piped else None,
    )


class TerminalProgress:
    """The progress protocol on stderr: bars on a terminal, else a few lines.

    Used as a context manager, so that the last bar is closed whatever happens.

    Args:
        log_seconds: between two lines about one step where stderr is no terminal, at least.
    """

    def __init__(self, *, log_seconds: float = 5.0) -> None:
        self._console = stderr_console()
        # Not the console's word for it: FORCE_COLOR makes a log colored, not a terminal.
        self._bars: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _Count(),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            self._bars = Progress(*columns, console=self._console)
        self._bar: TaskID | None = None
        self._log_seconds = log_seconds
        self._log: _Log | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._end_step()
        if self._bars:
            self._bars.stop()

    def begin(self, step: str, total: int | None = None, unit: str = "tensors") -> None:
        """A step begins, and the one before it is done."""
        self._end_step()
        if self._bars:
            self._bars.start()  # not earlier: what others print meanwhile would disturb it
            self._bar = self._bars.add_task(step, total=total, unit=unit, counted=True)
        else:
            self._log = _Log(self._console, step, total, unit, self._log_seconds)

    def advance(self, count: int = 1) -> None:
        """So many units more of the step are done."""
        if self._bars and self._bar is not None:
            self._bars.advance(self._bar, count)
        elif self._log:
            self._log.advance(count)

    def say(self, text: str) -> None:
        """A line for the user that stays."""
        self._console.print(text, soft_wrap=True)  # a path that is copied must be one line

    def _end_step(self) -> None:
        if self._bars and self._bar is not None:
            done, total = self._bars.tasks[-1].completed, self._bars.tasks[-1].total
            if total is None:  # whatever there was, all of it is done
                self._bars.update(self._bar, total=done or 1, completed=done or 1, counted=done > 0)
            self._bars.stop_task(self._bar)
        self._bar = None


class _Count(ProgressColumn):
    """How much is done, in the step's own unit."""

    def render(self, task: Task) -> Text:
        total = None if task.total is None else int(task.total)
        if not task.fields["counted"] or not (total or task.completed):
            return Text("")
        return Text(_amount(int(task.completed), total, task.fields["unit"]))


class _Log:
    """One step in a log: its name, then a line for each tenth of it, none too soon."""

    def __init__(
        self, console: Console, step: str, total: int | None, unit: str, seconds: float
    ) -> None:
        self._console = console
        self._step, self._total, self._unit = step, total, unit
        self._pause, self._told_at = seconds, time.monotonic()
        self._done = self._told = 0
        console.print(step)

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        tenths = self._done * _LINES // self._total if self._total else self._told + 1
        if tenths == self._told or now - self._told_at < self._pause:
            return
        if not self._total:
            self._pause *= 2  # an hour leaves about ten lines
        self._told, self._told_at = tenths, now
        self._console.print(f"{self._step}: {_amount(self._done, self._total, self._unit)}")


def _amount(done: int, total: int | None, unit: str) -> str:
    """`3 of 12 tensors`, `1.2 GB of 4.9 GB`, or without the total where it is not known."""
    if unit == "bytes":
        return format_bytes(done) + (f" of {format_bytes(total)}" if total else "")
    return f"{done:,}{f' of {total:,}' if total else ''} {unit}"
