"""What the inputs of a merge hand on to its card: license, language and task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Carried:
    """What `carry` found: front-matter keys, each input's license, and notes for the user."""

    metadata: dict[str, Any]
    licenses: dict[str, str | None]
    notes: list[str]


def carry(inputs: Mapping[str, Mapping[str, Any] | None]) -> Carried:
    """License, language and pipeline_tag for the card of a model made from `inputs`.

    - license: the inputs' if all state the same one, with its name and link; if they differ,
      `other` with all of them in `license_name`; if one states none, nothing is claimed.
    - language: those of all inputs, in order of appearance.
    - pipeline_tag: the inputs', where those that have one agree.

    Args:
        inputs: front matter by input name; None where an input's card is not at hand.
    """
    cards = {name: card or {} for name, card in inputs.items()}
    licenses = {name: _license(card) for name, card in cards.items()}
    metadata: dict[str, Any] = {}
    notes: list[str] = []

    silent = [name for name, stated in licenses.items() if stated is None]
    distinct = list(dict.fromkeys(stated for stated in licenses.values() if stated))
    if silent:
        notes.append(f"license not set: none is known for {', '.join(silent)}")
    elif len(distinct) == 1:
        keys = ("license", "license_name", "license_link")
        first = next(iter(cards.values()))
        metadata |= {key: first[key] for key in keys if first.get(key)}
    elif distinct:
        metadata |= {"license": "other", "license_name": "-and-".join(distinct)}
        notes.append(f"license set to other: the inputs are under {', '.join(distinct)}")

    languages = dict.fromkeys(
        tag for card in cards.values() for tag in listed(card.get("language"))
    )
    if languages:
        metadata["language"] = list(languages)
    tasks = {tag for card in cards.values() for tag in listed(card.get("pipeline_tag"))}
    if len(tasks) == 1:
        metadata["pipeline_tag"] = tasks.pop()
    return Carried(metadata, licenses, notes)


def _license(card: Mapping[str, Any]) -> str | None:
    """The license of one card as one word: that of `license_name` where it is `other`."""
    stated = listed(card.get("license"))
    if stated == ["other"]:
        stated = listed(card.get("license_name")) or stated
    return "-and-".join(stated) or None


def listed(value: object) -> list[str]:
    """A card's value as a list of strings: one value, several, or none."""
    return (
        [str(item) for item in value] if isinstance(value, list) else [str(value)] if value else []
    )
