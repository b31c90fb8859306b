"""The one exception class of this package, and the hint that its messages give."""

import difflib
from collections.abc import Iterable


class YoyoError(ValueError):
    """A mistake in what the user gave us, told in a sentence: what is wrong, where, what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choices most like `name`, in a sentence, for an error message."""
    choices = list(dict.fromkeys(choices))
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5) or choices[:12]
    return f"Did you mean {', '.join(close)}?" if close else ""
