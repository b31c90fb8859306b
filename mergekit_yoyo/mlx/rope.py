"""Rope parameters of a transformers config, in the fields under which mlx-lm's models look them up.

transformers 5 keeps them in one dictionary, `rope_parameters` (or one per kind of layer); mlx-lm's
models declare `rope_theta`, `rope_scaling`, `partial_rotary_factor` and others, each its own set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# ModelArgs field -> the key of `rope_parameters` that holds it.
ROPE_KEYS = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}
# The same for models whose sliding layers rotate at a frequency of their own.
LOCAL_ROPE_KEYS = {
    "rope_local_base_freq": "rope_theta",
    "rope_local_theta": "rope_theta",
    "swa_rope_theta": "rope_theta",
}
# Keys of `rope_parameters` that are no part of a scaling rule.
NOT_SCALING = {"rope_theta", "partial_rotary_factor"}
MISSING = object()
# Fields that say how much of a head is rotated.
PARTIAL_FIELDS = {"partial_rotary_factor", "rotary_pct", "rotary_dim"}


@dataclass(frozen=True)
class RopeView:
    """`rope_parameters` of a transformers config: of all layers, or of full and sliding ones."""

    whole: dict[str, Any]
    main: dict[str, Any]
    local: dict[str, Any] | None

    @classmethod
    def of(cls, declared: Any, context: int) -> "RopeView | None":
        """The view of a transformers config for an export of `context` tokens; None if the model
        has no rope parameters."""
        whole = getattr(declared, "rope_parameters", None)
        if not whole:
            return None
        nested = {key: dict(value) for key, value in whole.items() if isinstance(value, Mapping)}
        if not nested:
            return cls(whole, _for_context(whole, context), None)
        local = nested.get("sliding_attention")
        main = nested.get("full_attention") or next(iter(nested.values()))
        return cls(whole, _for_context(main, context), local)

    def field(self, name: str) -> Any:
        """The value of `ModelArgs` field `name` if it is about rope, else MISSING."""
        if name in ROPE_KEYS:
            return self.main.get(ROPE_KEYS[name], MISSING)
        if name in LOCAL_ROPE_KEYS and self.local:
            return self.local.get(LOCAL_ROPE_KEYS[name], MISSING)
        if name == "rope_scaling":
            return self.scaling
        if name == "rope_parameters":
            return self.whole if self.local is not None else self.main
        if name == "original_max_position_embeddings":
            return self.main.get(name, MISSING)
        return MISSING

    @property
    def kind(self) -> str:
        """The rule by which positions are scaled, in transformers' words."""
        return str(self.main.get("rope_type", "default"))

    @property
    def rotary_factor(self) -> float:
        """The share of each head that is rotated."""
        return float(self.main.get("partial_rotary_factor") or 1.0)

    @property
    def local_differs(self) -> bool:
        """Whether sliding layers rotate at another frequency than the others."""
        return self.local is not None and self.local["rope_theta"] != self.main["rope_theta"]

    @property
    def scaling(self) -> dict[str, Any] | None:
        """The rule's parameters as mlx-lm's `rope_scaling`; None for the default rule, unless a
        model of pictures splits its heads among the axes."""
        if self.kind == "default" and "mrope_section" not in self.main:
            return None
        rule = {key: value for key, value in self.main.items() if key not in NOT_SCALING}
        # mlx-lm looks for the older key `type` in some models and for `rope_type` in others.
        return rule | {"type": self.kind}


def _for_context(rope: Mapping[str, Any], context: int) -> dict[str, Any]:
    """longrope has two sets of factors; mlx-lm always uses `long_factor`, transformers the short
    ones up to the original length. An export is for one of the two."""
    rope = dict(rope)
    original = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") == "longrope" and original and context <= original:
        rope["long_factor"] = rope["short_factor"]
    return rope
