"""The plan of a conversion: which module gets how many bits, and what that weighs.

A plan is made from an mlx model whose arrays have shapes and dtypes but need not be loaded (mlx is
lazy), and it is what the export then carries out: `ExportPlan.cast` and `quantize`.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.models.cache import make_prompt_cache

from mergekit_yoyo.errors import YoyoError, nearest
from mergekit_yoyo.mlx.recipes import AFFINE_GROUP_SIZES, FLOAT_MODES, Recipe

SHARD_BYTES = 5 << 30  # mlx-lm's limit: what is written at once stands in memory
PROCESS_BYTES = 500_000_000  # Python with torch, transformers and mlx
CACHE_TOKENS = 4096
HEADER_BYTES = 150  # what a tensor costs in a safetensors header and in the index, without its name
TIED = "embedding = head"
EYES = "pictures"
ATTENTION = re.compile(r"(^|_)(attn|attention)")
ROUTER = re.compile(r"^(router|gate|.*_gate)$")
HEAD = re.compile(r"^(lm_head|embed_out|output|head)$")


@dataclass(frozen=True)
class Placement:
    """What one module gets.

    Attributes:
        path: in the mlx model.
        kind: embedding, head (`embedding = head` where they are tied), attention, router, experts,
            mlp, pictures, or other.
        parameters: number of weights, biases and the like included.
        bytes: on disk and in memory.
        bits: width; None: not quantized.
        group_size: weights that share a scale; None: not quantized.
        mode: mlx's quantization mode.
        note: why this is not simply what the recipe says; empty if it is.
    """

    path: str
    kind: str
    parameters: int
    bytes: int
    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    note: str = ""

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The keywords for mlx's `to_quantized`, which `config.json` records per module."""
        if self.bits is None:
            return None
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


@dataclass(frozen=True)
class ExportPlan:
    """A recipe laid out on a model: see `plan_model`."""

    recipe: Recipe
    placements: tuple[Placement, ...]
    largest_source: int
    carried_bytes: int
    cache_bytes: int

    @property
    def bytes(self) -> int:
        """Size of all weights."""
        return sum(placement.bytes for placement in self.placements)

    @property
    def folder_bytes(self) -> int:
        """Size of the folder: weights, their headers and index, tokenizer and card."""
        names = [
            f"{p.path}.{array}" for p in self.placements for array in range(3 if p.bits else 1)
        ]
        headers = sum(2 * len(name) + HEADER_BYTES for name in names)
        return self.bytes + headers + self.carried_bytes

    @property
    def parameters(self) -> int:
        """Number of weights of the unquantized model."""
        return sum(placement.parameters for placement in self.placements)

    @property
    def bits_per_weight(self) -> float:
        """Average width, scales and unquantized weights included."""
        return self.bytes * 8 / self.parameters

    @property
    def converting_bytes(self) -> int:
        """Memory at the peak of a conversion: one shard as written, the largest module while it
        is quantized, and the process itself."""
        return min(self.bytes, SHARD_BYTES) + 2 * self.largest_source + PROCESS_BYTES

    @property
    def running_bytes(self) -> int:
        """Memory for the weights and the cache of a conversation of `CACHE_TOKENS` tokens."""
        return self.bytes + self.cache_bytes

    @property
    def notes(self) -> list[str]:
        """Where the plan is not simply what the recipe says, modules with one reason together."""
        reasons: dict[str, list[str]] = {}
        for placement in self.placements:
            if placement.note:
                reasons.setdefault(placement.note, []).append(placement.path)
        return [
            f"{paths[0]}{f' and {len(paths) - 1} more' if paths[1:] else ''}: {note}"
            for note, paths in reasons.items()
        ]

    def rows(self) -> list[tuple[str, str, str, int, int, int]]:
        """The table: kind, bits, group size, modules, parameters, bytes; kinds in fixed order."""
        groups: dict[tuple[str, str, str], list[Placement]] = {}
        for placement in self.placements:
            bits, group = placement.bits, placement.group_size
            width = f"{bits}" if placement.mode == "affine" else f"{bits} ({placement.mode})"
            if bits is None:
                width = self.recipe.dtype or "as stored"
            key = (placement.kind, width, str(group or "-"))
            groups.setdefault(key, []).append(placement)
        order = ["embedding", TIED, "head", "attention", "router", "experts", "mlp", EYES, "other"]
        return [
            (*key, len(group), sum(p.parameters for p in group), sum(p.bytes for p in group))
            for key, group in sorted(
                groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
            )
        ]

    def quantization(self) -> dict[str, Any] | None:
        """`quantization` for config.json: a default, and each module that differs from it."""
        used = [p.quantization for p in self.placements if p.quantization]
        if not used:
            return None
        default = dict(Counter(tuple(q.items()) for q in used).most_common(1)[0][0])
        return default | {
            p.path: p.quantization
            for p in self.placements
            if p.quantization and p.quantization != default
        }

    def cast(self, model: nn.Module) -> None:
        """Give `model` the dtype of the recipe, in place and lazily."""
        if self.recipe.dtype is None:
            return
        dtype, casts = getattr(mx, self.recipe.dtype), _cast_predicate(model)

        def cast(path: str, value: mx.array) -> mx.array:
            floating = mx.issubdtype(value.dtype, mx.floating)
            return value.astype(dtype) if floating and casts(path) else value

        model.update(tree_map_with_path(cast, model.parameters()))

    def quantize(self, model: nn.Module) -> None:
        """Quantize the modules of `model` that are not yet, in place and lazily: mlx computes when
        the result is written."""
        wanted = {p.path: p.quantization for p in self.placements if p.quantization}

        def predicate(path: str, module: nn.Module) -> dict[str, Any] | bool:
            whole = hasattr(module, "to_quantized")  # and not what was rounded otherwise
            return (whole and wanted.get(path)) or False

        nn.quantize(model, class_predicate=predicate)


def plan_model(
    model: nn.Module,
    recipe: Recipe,
    *,
    carried_bytes: int = 0,
    eyes: Callable[[str], bool] = lambda path: False,
) -> ExportPlan:
    """Lay `recipe` out on `model`, which is not changed and whose arrays are not read.

    A width is never below what mlx-lm's model class protects (its `quant_predicate`). A group size
    that does not divide a module's width is replaced by the largest smaller one that does; if there
    is none the module stays unquantized. Both are told in `ExportPlan.notes`.

    Args:
        model: an mlx-lm model.
        recipe: what each kind of module gets.
        carried_bytes: of the files besides the weights, for `ExportPlan.folder_bytes`.
        eyes: whether a module path is of the pictures' part, which is quantized only where the
            recipe names it.

    Raises:
        YoyoError: a pattern of the recipe fits no module.
    """
    protect = getattr(model, "quant_predicate", None)
    casts = _cast_predicate(model)
    modules = _modules(model)
    _check_patterns(
        recipe, [path for path, module, _ in modules if hasattr(module, "to_quantized")]
    )
    language = [(path, module) for path, module, _ in modules if not eyes(path)]
    ordinals = _ordinals([path for path, _ in language])
    tied = not any(_kind(path, module) == "head" for path, module in language)
    placements = []
    for path, module, arrays in modules:
        sizes = {
            name: array.size * _itemsize(array, f"{path}.{name}" if path else name, recipe, casts)
            for name, array in arrays.items()
        }
        kind = EYES if eyes(path) else _kind(path, module)
        bits: int | None = None
        group_size: int | None = None
        mode, note = str(recipe.mode), ""
        if hasattr(module, "to_quantized") and recipe.quantizes:
            bits = _wanted_bits(path, kind, recipe, ordinals)
            bits, wanted_group, mode, note = _protected(path, module, bits, recipe, protect)
            if bits is not None:
                group_size, note = _dividing(arrays["weight"].shape[-1], wanted_group, mode, note)
                bits = bits if group_size else None
        if bits is not None and group_size is not None:
            count = arrays["weight"].size
            scale = sizes["weight"] // count * 2 if mode == "affine" else 1
            sizes["weight"] = count * bits // 8 + count // group_size * scale
        if kind == "embedding" and tied:
            kind = TIED
        parameters = sum(array.size for array in arrays.values())
        placements.append(
            Placement(path, kind, parameters, sum(sizes.values()), bits, group_size, mode, note)
        )
    largest = max(sum(array.nbytes for array in arrays.values()) for _, _, arrays in modules)
    return ExportPlan(recipe, tuple(placements), largest, carried_bytes, _cache_bytes(model))


def _check_patterns(recipe: Recipe, paths: Sequence[str]) -> None:
    """Refuse a pattern that fits no module: it would have no effect, and nobody would know."""
    for pattern in recipe.modules:
        if not any(re.search(pattern, path) for path in paths):
            raise YoyoError(
                f"recipe {recipe.name}: no module of this model is called like {pattern!r}. "
                f"{nearest(pattern, _last_parts(paths)) or f'There is {paths[0]}, for one.'}"
            )
    attention = _last_parts([path for path in paths if _attention(path)])
    for pattern in recipe.projections if recipe.period and attention else ():
        if not any(re.fullmatch(pattern, name) for name in attention):
            raise YoyoError(
                f"recipe {recipe.name}: no projection of attention is called like {pattern!r}. "
                f"Known are {', '.join(attention)}."
            )


def _last_parts(paths: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def _wanted_bits(
    path: str, kind: str, recipe: Recipe, ordinals: dict[tuple[str, int], int]
) -> int | None:
    """What the recipe alone gives a module; None: not quantized. ordinals: of `_ordinals`."""
    for pattern, bits in reversed(recipe.modules.items()):
        if re.search(pattern, path):
            return bits or None
    if kind == EYES:
        return None
    high = kind in ("embedding", "head", "router")
    layer = _layer(path)
    if layer is not None and layer < recipe.first_layers:
        high = True
    if kind == "attention" and layer is not None and recipe.period:
        projection = path.rpartition(".")[2]
        chosen = any(re.fullmatch(pattern, projection) for pattern in recipe.projections)
        nth = ordinals[_attention(path), layer]
        high |= chosen and nth % recipe.period == recipe.offset % recipe.period
    return recipe.bits_high if high else recipe.bits_low


def _protected(
    path: str,
    module: nn.Module,
    bits: int | None,
    recipe: Recipe,
    protect: Callable[..., bool | dict[str, Any]] | None,
) -> tuple[int | None, int, str, str]:
    """Bits, group size and mode, raised to what the model class asks for."""
    mode, group_size = str(recipe.mode), recipe.group_size
    if mode in FLOAT_MODES and bits is not None and bits != FLOAT_MODES[mode][0]:
        mode, group_size = "affine", 64  # a width that only the user's own pattern can ask for
    guard = protect(path, module) if protect else True
    note = ""
    if guard is False and bits is not None:
        return None, group_size, mode, "kept unquantized: its model class protects it"
    if isinstance(guard, dict) and bits is not None:
        floor = int(guard.get("bits", 0))
        if bits < floor:
            note = f"{floor} bits, not {bits}: its model class protects it"
            bits = floor
            if mode in FLOAT_MODES:
                mode, group_size = "affine", int(guard.get("group_size", 64))
        if mode == "affine":
            group_size = min(group_size, int(guard.get("group_size", group_size)))
    return bits, group_size, mode, note


def _dividing(width: int, group_size: int, mode: str, note: str) -> tuple[int | None, str]:
    if width % group_size == 0:
        return group_size, note
    smaller = [size for size in AFFINE_GROUP_SIZES if size < group_size and width % size == 0]
    if mode == "affine" and smaller:
        return smaller[0], f"groups of {smaller[0]}: {group_size} does not divide {width} inputs"
    return None, f"not quantized: no group size of {mode} divides {width} inputs"


def _modules(model: nn.Module) -> list[tuple[str, nn.Module, dict[str, mx.array]]]:
    """Every module that holds arrays of its own, as (path, module, those arrays)."""
    found = []
    for path, module in reversed(model.named_modules()):
        arrays = {k: v for k, v in module.items() if isinstance(v, mx.array) and k[0] != "_"}
        if arrays:
            found.append((path, module, arrays))
    return found


def _kind(path: str, module: nn.Module) -> str:
    parts = path.split(".")
    if not hasattr(module, "to_quantized"):
        return "other"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if HEAD.match(parts[-1]) and _layer(path) is None:
        return "head"
    if any(ROUTER.match(part) for part in parts):
        return "router"
    if any(ATTENTION.search(part) for part in parts):
        return "attention"
    return "experts" if module.weight.ndim == 3 else "mlp"


def _attention(path: str) -> str:
    """What the attention block in a path is called: `self_attn`, `linear_attn`."""
    return next((part for part in path.split(".") if ATTENTION.search(part)), "")


def _ordinals(paths: list[str]) -> dict[tuple[str, int], int]:
    """Of each attention block (its name, its layer) how many of its kind lie below it."""
    blocks = {(_attention(p), layer) for p in paths if (layer := _layer(p)) is not None}
    return {
        (name, layer): sum(name == other and below < layer for other, below in blocks)
        for name, layer in blocks
    }


def _layer(path: str) -> int | None:
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def _cache_bytes(model: nn.Module) -> int:
    """The size of the cache, from shapes: mlx does not compute what is not asked for.

    It grows by the same with every token, up to a window. So two are enough, and they must do:
    several at once some of mlx-vlm's models compute as they come.
    """
    cache = make_prompt_cache(model)
    sizes = []
    for _ in range(2):
        try:
            model(mx.zeros((1, 1), mx.int32), cache=cache)
        except Exception as error:  # on impossible values each model fails in ways of its own
            raise YoyoError(f"config.json: its model cannot be run: {error}.") from None
        sizes.append([_state_bytes(entry) for entry in cache])
    limits = [getattr(entry, "max_size", None) or CACHE_TOKENS for entry in cache]
    return sum(
        one + (two - one) * (min(limit, CACHE_TOKENS) - 1)
        for one, two, limit in zip(*sizes, limits, strict=True)
    )


def _state_bytes(entry: Any) -> int:
    states = (state for _, state in tree_flatten(entry.state))
    return sum(state.nbytes for state in states if isinstance(state, mx.array))


def _cast_predicate(model: nn.Module) -> Callable[[str], bool]:
    predicate: Callable[[str], bool] = getattr(model, "cast_predicate", lambda path: True)
    return predicate


def _itemsize(array: mx.array, path: str, recipe: Recipe, casts: Callable[[str], bool]) -> int:
    if recipe.dtype and mx.issubdtype(array.dtype, mx.floating) and casts(path):
        return int(getattr(mx, recipe.dtype).size)
    return int(array.dtype.size)
