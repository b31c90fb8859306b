"""How long work shows: on a real terminal (a pseudo-terminal) bars, in a log a few lines."""

import os
import pty
import re
import subprocess
import sys

import pytest

WORK = """
from mergekit_yoyo.terminal import TerminalProgress
with TerminalProgress(log_seconds={seconds}) as progress:
    progress.begin("Reading [weights]", 1_000, "tensors")
    for _ in range(1_000):
        progress.advance()
    progress.say("note: [red]kept[/red] as it is")
    progress.say("path/" * 60)
    progress.begin("Writing", 4_900_000_000, "bytes")
    for _ in range(49):
        progress.advance(100_000_000)
    progress.begin("Looking", None, "files")
    for _ in range(100):
        progress.advance()
    {after}
"""


def in_a_log(seconds: float, after: str = "", **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", WORK.format(seconds=seconds, after=after)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=not after,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_log_gets_a_line_a_step_where_the_steps_are_short():
    expected = [
        "Reading [weights]",
        "note: [red]kept[/red] as it is",
        "path/" * 60,
        "Writing",
        "Looking",
    ]
    assert in_a_log(60) == expected
    # a log whose reader knows colors is no terminal: no bars, no cursor movements
    assert in_a_log(60, FORCE_COLOR="1") == expected


def test_a_log_gets_ten_lines_more_of_a_long_step():
    lines = in_a_log(0)
    assert [line for line in lines if line.startswith("Reading")] == [
        "Reading [weights]",
        *(f"Reading [weights]: {done:,} of 1,000 tensors" for done in range(100, 1001, 100)),
    ]
    writing = [line for line in lines if line.startswith("Writing")]
    assert writing[:2] == ["Writing", "Writing: 500.0 MB of 4.9 GB"]
    assert writing[-1] == "Writing: 4.9 GB of 4.9 GB"
    assert len(writing) == 11


def test_a_step_of_unknown_length_says_less_and_less_often():
    """An hour by a clock of its own, a second a file: after 5, 15, 35, ... seconds."""
    code = (
        "import itertools, time\n"
        "from mergekit_yoyo.terminal import TerminalProgress\n"
        "with TerminalProgress(log_seconds=5) as progress:\n"
        "    time.monotonic = itertools.count().__next__\n"
        "    progress.begin('Looking', None, 'files')\n"
        "    for _ in range(3600): progress.advance()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = [5 * (2**k - 1) for k in range(1, 10)]
    assert done.stderr.splitlines() == ["Looking", *(f"Looking: {s:,} files" for s in seconds)]


@pytest.mark.parametrize("after", ["", "raise KeyboardInterrupt"])
def test_a_terminal_gets_bars_and_its_cursor_back(after):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WORK.format(seconds=0, after=after)],
        stdout=theirs,
        stderr=theirs,
        env={k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert (process.wait() == 0) == (after == "")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "1,000 of 1,000 tensors" in text
    assert "4.9 GB of 4.9 GB" in text
    assert "note: [red]kept[/red] as it is" in text
    assert "100 files" in text or after
    assert "path/" * 60 in text  # the terminal breaks it, we do not: it can be copied
    assert (
        shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1
    )  # the cursor, hidden and back
