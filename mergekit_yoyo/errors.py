"""The one exception class of this package, and what its messages are made of."""

import difflib
import os
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

_LISTED = 12  # choices that a message lists where none is near


class YoyoError(ValueError):
    """A mistake in what the user gave us, told in a sentence: what is wrong, where, what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


def explain_os_error(error: OSError) -> str:
    """What the system refused, as a sentence that begins with the file, where it told which."""
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"a file could not be read or written: {reason}."
    return f"{os.fsdecode(error.filename)}: cannot be read or written: {reason}."


def first_line(error: BaseException) -> str:
    """The first line of what an error says, for a sentence of ours; its type where it says nothing.

    For those of libraries, which fail in ways of their own and may say a page.
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def close_to(name: str, choices: Iterable[str]) -> list[str]:
    """The choices that are like `name`, at most three, the most like first."""
    return difflib.get_close_matches(name, list(choices), n=3, cutoff=0.5)


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choices most like `name` as a sentence; a few choices in full where none is like it."""
    choices = list(dict.fromkeys(choices))
    close = close_to(name, choices)
    if close or len(choices) == 1:
        return f"Did you mean {', '.join(close or choices)}?"
    return f"Known are {', '.join(choices)}." if 0 < len(choices) <= _LISTED else ""


def explain_invalid(error: "ValidationError", data: Any, fields: Iterable[str] = ()) -> str:
    """What pydantic found wrong with `data`: place by place, what was expected and what is there.

    Args:
        error: pydantic's.
        data: what was validated; it tells keys from the names that pydantic gives to alternatives.
        fields: that are allowed, for a hint where another one is not.
    """
    details = error.errors()
    # A value or a list of them: that it is not the other of the two is no news then.
    told = {detail["loc"][:1] for detail in details if not detail["type"].endswith("_type")}
    problems = []
    for detail in details:
        kind, place = detail["type"], ".".join(map(str, path_in(data, detail["loc"])))
        if kind.endswith("_type") and detail["loc"][:1] in told:
            continue
        problem = re.sub(r"^Value error, | or instance of \w+$", "", detail["msg"])
        if kind == "extra_forbidden":
            problem = f"no such field. {nearest(str(detail['loc'][-1]), fields)}".rstrip()
        elif kind != "missing" and place and "; got " not in problem:
            problem += f" (got {reprlib.repr(detail['input'])})"
        problems.append(f"{place}: {problem}" if place else problem)
    return "; ".join(problems)


def path_in(data: Any, location: Sequence[str | int]) -> list[str | int]:
    """Where in `data` a value was refused: the keys and numbers of pydantic's location, without the
    names that it gives to alternatives; empty if it is `data` as a whole."""
    path: list[str | int] = []
    for part in location:
        if (isinstance(data, Mapping) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            data = data[part]  # type: ignore[index]
        elif not isinstance(data, Mapping) or part != location[-1]:  # a key may be missing
            continue
        path.append(part)
    return path
