"""What of a merge is not like its inputs, in words, with the loaders that stumble over it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergekit_yoyo.finish.layout import LayoutPlan

_OLDER_LOADERS = "loaders from before transformers 5 (mlx-lm, GGUF converters, older vLLM and GPTQ)"
_WHO_CARES = {
    "README.md": "the Hub",
    "config.json": "all loaders",
    "generation_config.json": "transformers and vLLM (sampling settings, end of turn)",
    "chat_template.jinja": "chat frontends, mlx-lm, vLLM",
    "chat_template.json": "chat frontends",
    "mergekit_config.yml": "readers of the merge",
}
_SPELLED_ANEW = ("rope_parameters", "num_local_experts", "dtype")


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
    extra = sorted(present.keys() - finished.keys())
    lacking = sorted(finished.keys() - present.keys())
    changed = sorted(
        key for key in present.keys() & finished.keys() if present[key] != finished[key]
    )
    parts = [
        f"{word} {', '.join(keys)}"
        for word, keys in [("has", extra), ("lacks", lacking), ("other values of", changed)]
        if keys
    ]
    older = any(key in extra for key in _SPELLED_ANEW) or lacking
    loaders = _OLDER_LOADERS if older else _WHO_CARES["config.json"]
    return Difference("config.json", "; ".join(parts) or "order or spacing of its keys", loaders)
