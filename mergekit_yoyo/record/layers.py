"""Where a tensor sits in a model: its layer and its kind of module, read off its name."""

import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar

_LAYER = re.compile(r"^(?:.*\.)?(?:layers|h|blocks?)\.(\d{1,9})\.(.+)$")
# How far into its layer a kind stands, by the first expression that it matches; and the same of the
# modules of one stage, in order.
_STAGES = (
    (r"^(input|pre_attn|pre_attention|attention|attn|operator)_?(layer_?)?norm|^ln_1|^norm1?$", 0),
    (r"^(post_attention|post_attn|pre_feed_?forward|pre_mlp|ffn)_?(layer_?)?norm|^ln_2|^norm2", 2),
    (r"^(post_feed_?forward|post_mlp)", 4),
    (r"mlp|feed_?forward|ffn|moe|expert", 3),
    (r"attn|attention|mixer|mamba|conv|ssm|recurrent", 1),
)
_MODULES = (
    r"q_(a_|b_)?proj|qkv|c_attn|\bwq|in_proj|query_key_value",
    r"k_proj|\bwk\b|kv_a_proj",
    r"v_proj|\bwv\b|kv_b_proj",
    r"q_(layer)?norm|q_a_layernorm",
    r"k_(layer)?norm|kv_a_layernorm",
    r"o_proj|out_proj|\bwo\b|dense$|attn\.c_proj",
    r"router|(^|\.)gate$",
    r"gate_up",
    r"gate_proj|\bw1|fc1|c_fc|dense_h_to_4h",
    r"up_proj|\bw3",
    r"down_proj|\bw2|fc2|mlp\.c_proj|dense_4h_to_h",
)
_BEFORE = r"emb(?!edding_norm)|wte|wpe|tok|visual|vision|audio|patch|project|merger"
_OUTER = ("model.", "language_model.", "transformer.", "backbone.")


class Place(NamedTuple):
    """layer: its number, None for what lies outside of the layers. kind: the module within it."""

    layer: int | None
    kind: str


def place_of(name: str) -> Place:
    """Layer and module kind of a tensor name.

    `model.layers.3.self_attn.q_proj.weight` is `self_attn.q_proj` in layer 3, and
    `model.embed_tokens.weight` is `embed_tokens` outside of the layers. Numbers within a kind
    (experts stored apart) are dropped; a bias is a kind of its own.
    """
    found = _LAYER.match(name)
    layer, kind = (int(found[1]), found[2]) if found else (None, name)
    if found is None:
        while outer := next((o for o in _OUTER if kind.startswith(o)), None):
            kind = kind.removeprefix(outer)
    parts = [part for part in kind.removesuffix(".weight").split(".") if not part.isdigit()]
    return Place(layer, ".".join(parts))


def comes_first(kind: str) -> bool:
    """Whether a kind that lies in no layer comes before them: embeddings, towers."""
    return re.search(_BEFORE, kind) is not None


def order_of(kind: str) -> tuple[int, bool, int, str]:
    """Sorts the kinds of a layer as a model computes them: norm, attention (q, k, v, o), norm, MLP
    (router, gate, up, down). Unknown ones come last, by name."""
    own = kind.removesuffix(".bias")
    stage = next((place for pattern, place in _STAGES if re.search(pattern, own)), len(_STAGES))
    module = next((i for i, m in enumerate(_MODULES) if re.search(m, own)), len(_MODULES))
    return stage, "shared" in own, module, kind


class Placed(Protocol):
    """What is known of one tensor."""

    @property
    def place(self) -> Place: ...


T = TypeVar("T", bound=Placed)


def by_layer(tensors: Iterable[T]) -> dict[int, list[T]]:
    """Those within the layers, in the order of these."""
    found: dict[int, list[T]] = {}
    for tensor in tensors:
        if tensor.place.layer is not None:
            found.setdefault(tensor.place.layer, []).append(tensor)
    return dict(sorted(found.items()))


def by_kind(tensors: Iterable[T]) -> dict[str, list[T]]:
    """By kind of module, in the order in which the kinds come."""
    found: dict[str, list[T]] = {}
    for tensor in tensors:
        found.setdefault(tensor.place.kind, []).append(tensor)
    return found
