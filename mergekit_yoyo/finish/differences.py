"""What of a merge is not like its inputs, in words, with the loaders that stumble over it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_yoyo import card as cards
from mergekit_yoyo.finish.card import SECTION
from mergekit_yoyo.model.layout import LayoutPlan

# Loaders that know the original format only.
_OLDER_LOADERS = "mlx-lm, GGUF converters, several vLLM and GPTQ versions"
_WHO_CARES = {
    "README.md": "the Hub",
    "config.json": "all loaders",
    "generation_config.json": "transformers and vLLM (sampling settings, end of turn)",
    "chat_template.jinja": "chat frontends, mlx-lm, vLLM",
    "chat_template.json": "chat frontends",
    "mergekit_config.yml": "readers of the merge",
}


@dataclass(frozen=True)
class Difference:
    """One thing that `finish` would change: in which file, what, and which loaders care."""

    file: str
    what: str
    loaders: str = ""

    def __post_init__(self) -> None:
        if not self.loaders:
            cares = _WHO_CARES.get(self.file, "tokenizers and processors")
            object.__setattr__(self, "loaders", cares)

    def __str__(self) -> str:
        return f"{self.file}: {self.what}  [{self.loaders}]"


def layout_difference(layout: LayoutPlan) -> list[Difference]:
    """The weights' difference from their original layout: one entry, or none."""
    if not layout.changed:
        return []
    old = [name for group in layout.changed for name in group.sources]
    new = [name for group in layout.changed for name in group.targets]
    what = f"{len(old)} tensors like {old[0]} for {len(new)} like {new[0]}"
    return [Difference("*.safetensors", what, _OLDER_LOADERS)]


def config_difference(present: Mapping[str, Any], finished: Mapping[str, Any]) -> Difference:
    """How a config.json differs from the finished one, key by key."""
    what, older = _keys(present, finished)
    loaders = _OLDER_LOADERS if older else _WHO_CARES["config.json"]
    return Difference("config.json", what or "order or spacing of its keys", loaders)


def card_difference(present: str, finished: str) -> Difference:
    """How a model card differs from the finished one: front-matter keys, and our section."""
    what, _ = _keys(cards.read_metadata(present), cards.read_metadata(finished))
    old, new = (cards.read_section(card, SECTION) for card in (present, finished))
    if old != new:
        section = "lacks how it was made and used" if old is None else "its section is out of date"
        what = f"{what}; {section}" if what else section
    return Difference("README.md", what)


def _keys(present: Mapping[str, Any], finished: Mapping[str, Any]) -> tuple[str, bool]:
    """The keys that differ, in words, and whether any is there that should not be, or lacks."""
    extra = [key for key in present if key not in finished]
    lacking = [key for key in finished if key not in present]
    changed = [key for key in present if key in finished and present[key] != finished[key]]
    parts = [
        f"{word} {', '.join(sorted(keys))}"
        for word, keys in [("has", extra), ("lacks", lacking), ("other values of", changed)]
        if keys
    ]
    return "; ".join(parts), bool(extra or lacking)
