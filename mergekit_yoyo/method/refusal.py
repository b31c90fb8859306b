"""How this method says no to mergekit: in one sentence, without a traceback.

mergekit's commands are click commands, and click prints its own exceptions as a sentence.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from mergekit_yoyo.errors import YoyoError


class MergeError(click.ClickException, YoyoError):
    """A YoyoError on its way through mergekit."""


class PlanError(click.ClickException):
    """What a task is refused for while it is planned.

    No YoyoError: tasks are pydantic models, and pydantic buries a ValueError in a text of its own.
    """


@contextmanager
def refusals(kind: type[click.ClickException] = MergeError) -> Iterator[None]:
    """Turns a YoyoError into a MergeError, or into a PlanError for a task that is planned."""
    try:
        yield
    except YoyoError as error:
        raise kind(str(error)) from error
