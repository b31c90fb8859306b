"""Marked sections of a card's Markdown: ours to rewrite, everything around them the user's.

A section stands between `<!-- mergekit-yoyo:NAME -->` and `<!-- /mergekit-yoyo:NAME -->`, which no
renderer shows.
"""

import re

from mergekit_yoyo.errors import YoyoError


def read_section(card: str, name: str) -> str | None:
    """The content of section `name` in `card`, without its markers; None if there is no such one.

    Raises:
        YoyoError: the section is opened and not closed, or stands there twice.
    """
    span = _span(card, name)
    return None if span is None else card[slice(*span)].strip("\r\n")


def write_section(card: str, name: str, content: str) -> str:
    """`card` with section `name` holding `content`: replaced where it stands, or appended.

    All other text is kept byte for byte, and writing the same content twice changes nothing.

    Raises:
        YoyoError: the section is opened and not closed, or stands there twice.
    """
    newline = "\r\n" if "\r\n" in card else "\n"
    content = newline.join(content.strip("\r\n").splitlines())
    span = _span(card, name)
    if span is not None:
        return card[: span[0]] + newline + content + newline + card[span[1] :]
    start, end = _markers(name)
    gap = "" if not card or card.endswith(newline * 2) else newline
    gap += newline if card and not card.endswith("\n") else ""
    return card + gap + newline.join([start, content, end, ""])


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- mergekit-yoyo:{name} -->", f"<!-- /mergekit-yoyo:{name} -->"


def _span(card: str, name: str) -> tuple[int, int] | None:
    """Where the content between the markers begins and ends."""
    start, end = _markers(name)
    starts = [match.end() for match in re.finditer(re.escape(start), card)]
    ends = [match.start() for match in re.finditer(re.escape(end), card)]
    if not starts and not ends:
        return None
    if len(starts) != 1 or len(ends) != 1 or starts[0] > ends[0]:
        raise YoyoError(
            f"model card: expected one {start} followed by one {end}; got {len(starts)} and "
            f"{len(ends)}, or their order reversed. Mend or delete these markers in README.md."
        )
    return starts[0], ends[0]
