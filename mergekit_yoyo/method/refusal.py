"""How this method says no to mergekit: in one sentence, without a traceback.

mergekit's commands are click commands, and click prints its own exceptions as a sentence.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from mergekit_yoyo.errors import YoyoError


class MergeError(click.ClickException, YoyoError):
    """A YoyoError on its way through mergekit."""


@contextmanager
def refusals() -> Iterator[None]:
    """Turns a YoyoError into a MergeError."""
    try:
        yield
    except YoyoError as error:
        raise MergeError(str(error)) from error
