"""Where a tensor sits in a model: its layer and its kind of module, read off its name."""

import re
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar

_LAYER = re.compile(r"^(?:.*\.)?(?:layers|h|blocks?)\.(\d+)\.(.+)$")
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
