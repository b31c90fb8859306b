"""What `inspect` has to say: one sentence, and how bad it is."""

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

_SHOWN = 3

Level = Literal["error", "warning", "note"]


class Remark(NamedTuple):
    """level: `error`, the merge fails or is not what the YAML says; `warning`, worth a look."""

    level: Level
    text: str


def error(text: str) -> Remark:
    """The merge would fail, or its result would not be what the YAML says."""
    return Remark("error", text)


def warning(text: str) -> Remark:
    """Worth a look; the merge works."""
    return Remark("warning", text)


def note(text: str) -> Remark:
    """Good to know."""
    return Remark("note", text)


def some(names: Collection[object]) -> str:
    """The first of many names, and how many there are besides."""
    first = [str(name) for name in names][:_SHOWN]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(first) + more


def by_value(pairs: Iterable[tuple[object, str]]) -> str:
    """Who has which value, in words: `bfloat16 (./a, ./b); float32 (./c)`."""
    groups: dict[object, list[str]] = {}
    for value, model in pairs:
        groups.setdefault(value, []).append(model)
    ranked: Sequence[tuple[object, list[str]]] = sorted(groups.items(), key=lambda g: -len(g[1]))
    return "; ".join(f"{value} ({some(models)})" for value, models in ranked)
