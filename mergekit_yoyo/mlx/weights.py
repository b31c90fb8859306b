"""From a checkpoint and its bridge to an mlx model, lazily: no weight is read before it is used."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.bridge import Bridge
from mergekit_yoyo.mlx.classes import name_of

if TYPE_CHECKING:
    from mergekit_yoyo.model.layout import LayoutPlan

_PARTS = ("gate", "up", "down")
_EXPERT = re.compile(rf"experts\.(\d+)\.({'|'.join(_PARTS)})_proj\.weight$")


def skeleton(bridge: Bridge, dtype: str | None = None) -> nn.Module:
    """The mlx model without a checkpoint: shapes only, its arrays are never computed.

    Args:
        bridge: what the model is built from.
        dtype: of its floating point arrays: those of the checkpoint's config.

    Raises:
        YoyoError: mlx-lm cannot build the model from this config.
    """
    try:
        model: nn.Module = bridge.model_class(bridge.args)
    except YoyoError:
        raise
    except Exception as error:  # on impossible values each model fails in ways of its own
        raise _not_built(bridge, error) from None
    if dtype in ("float16", "bfloat16", "float32"):
        model.set_dtype(getattr(mx, dtype))
    return model


def load_lazily(folder: Path, bridge: Bridge, declared: Any, *, float32: bool = False) -> nn.Module:
    """The mlx model of a checkpoint in original layout, its arrays yet to be read.

    float32: the weights as float32 before mlx-lm changes them, as transformers computes with them:
    it adds 1 to the norms of some models, which in bfloat16 is off by up to 0.4 %.

    Raises:
        YoyoError: mlx-lm cannot build the model, or its tensors do not fit the checkpoint's.
    """
    model_class = _bridged_class(bridge, declared, float32=float32)
    try:
        model, _ = load_model(
            folder,
            lazy=True,
            model_config=bridge.config,
            get_model_classes=lambda config: (model_class, bridge.args_class),
        )
    except YoyoError:
        raise
    except Exception as error:  # as above
        raise _not_built(bridge, error) from None
    return model


def _bridged_class(bridge: Bridge, declared: Any, *, float32: bool = False) -> Any:
    """mlx-lm's model, which tries the layouts of packed experts until its weights fit."""

    class Bridged(bridge.model_class):  # type: ignore[misc, name-defined]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            parent = getattr(super(), "sanitize", dict)
            # mlx-lm's DeepSeek-V3 knows the number of such a layer of the published model alone
            weights = {k: a for k, a in weights.items() if not _further_layer(k, declared)}
            if float32:
                weights = {name: _widened(a) for name, a in weights.items()}
            found = {}
            for layout in _expert_layouts(weights, declared):
                try:
                    found = dict(parent(layout))
                except (KeyError, ValueError):  # not made for this layout
                    continue
                if _fit(found, self):
                    break
            return found or dict(parent(weights))

    return Bridged


def left_out(bridge: Bridge, declared: Any, folder: Path) -> dict[str, int]:
    """What mlx-lm's model does not read of a checkpoint in original layout: parts (`model.visual`,
    `mtp`, layers beyond the model's own) without which it would get the same weights, with their
    numbers of parameters.

    Nothing is read but headers.
    """
    weights = {k: v for file in sorted(folder.glob("model*.safetensors")) for k, v in _of(file)}
    parts: dict[str, set[str]] = {}
    for name in weights:
        first, _, rest = name.partition(".")
        part = f"{first}.{rest.partition('.')[0]}" if first == "model" else first
        part = _further_layer(name, declared) or part
        parts.setdefault(part, set()).add(name)
    model_class = _bridged_class(bridge, declared)

    def read(weights: dict[str, mx.array]) -> set[str]:
        # by a new model each time: Gemma 3's gives its head away while it reads
        return set(model_class(bridge.args).sanitize(weights))

    whole = read(dict(weights))
    found = {}
    for part, names in parts.items():
        try:
            kept = read({k: v for k, v in weights.items() if k not in names})
        except (AttributeError, LookupError, TypeError, ValueError):  # it cannot do without
            continue
        if kept == whole and part != "lm_head":  # a tied head is the embedding
            found[part] = sum(weights[name].size for name in names)
    return found


def _further_layer(name: str, declared: Any) -> str:
    """`model.layers.N` of a tensor that lies beyond the model's own layers, as blocks for
    multi-token prediction do; else nothing."""
    match = re.match(r"(model\.layers\.(\d+))\.", name)
    text = declared and declared.get_text_config()
    own = getattr(text, "num_hidden_layers", None)
    return match[1] if match and isinstance(own, int) and int(match[2]) >= own else ""


def _of(file: Path) -> Iterator[tuple[str, mx.array]]:
    arrays: Any = mx.load(str(file))
    yield from arrays.items()


def packed_layout(folder: Path, declared: Any) -> "LayoutPlan | None":
    """How a checkpoint in transformers' model layout (experts packed) becomes the original one,
    which is what mlx-lm reads; None if it is original already, or unknown to transformers."""
    from mergekit_yoyo.model.checkpoint import Checkpoint
    from mergekit_yoyo.model.layout import plan_layout

    if declared is None:
        return None
    with Checkpoint(folder) as checkpoint:
        plan = plan_layout(declared, checkpoint.tensors)
    return plan if plan.changed else None


def unpack(source: Path, plan: "LayoutPlan", folder: Path) -> None:
    """Write a checkpoint in its original layout into `folder`, tensor by tensor."""
    from mergekit_yoyo.model.checkpoint import Checkpoint
    from mergekit_yoyo.model.writing import write_checkpoint

    with Checkpoint(source) as checkpoint:
        write_checkpoint(folder, plan.targets, plan.convert(checkpoint.read))
    shutil.copyfile(source / "config.json", folder / "config.json")


def stored_dtype(folder: Path) -> str:
    """The dtype that holds most bytes of a checkpoint, by mlx's name; only headers are read."""
    sizes: Counter[str] = Counter()
    for path in folder.glob("model*.safetensors"):
        for _, array in _of(path):
            sizes[str(array.dtype).removeprefix("mlx.core.")] += array.nbytes
    return sizes.most_common(1)[0][0]


def _expert_layouts(
    weights: Mapping[str, mx.array], declared: Any
) -> Iterator[dict[str, mx.array]]:
    """The ways in which experts may have to be laid for mlx-lm, which has the outputs first: as
    they are stored, as some of its models know the layout themselves; with those turned that the
    modeling class declares to be (experts, inputs, outputs); with all turned, where transformers
    turns the checkpoint's own way of it and mlx-lm's model does too; packed, where they are stored
    one by one and the model knows them packed alone. The first that fits counts.
    """
    packed = {name for name, a in weights.items() if a.ndim == 3 and name.endswith("_proj")}
    turned = {name: weights[name].swapaxes(-1, -2) for name in packed}
    yield dict(weights)
    if flipped := packed & _declared_transposed(declared):
        kept = {name: a for name, a in weights.items() if name not in flipped}
        yield kept | {f"{name}.weight": turned[name] for name in flipped}
    if turned:
        yield {**weights, **turned}
    if together := _packed(weights):
        yield together


def _packed(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Experts that are stored one by one as transformers packs them: gate above up, then down.

    Nothing where there are none, or not all of that.
    """
    found: dict[str, dict[tuple[int, str], mx.array]] = {}
    for name, array in weights.items():
        if match := _EXPERT.search(name):
            place = name[: match.start()] + "experts."
            found.setdefault(place, {})[int(match[1]), match[2]] = array
    whole = [{(n, part) for n, _ in arrays for part in _PARTS} for arrays in found.values()]
    if not found or whole != [arrays.keys() for arrays in found.values()]:
        return {}
    packed = {name: array for name, array in weights.items() if not _EXPERT.search(name)}
    for place, arrays in found.items():
        numbers = sorted({number for number, _ in arrays})
        packed[f"{place}gate_up_proj"] = mx.stack(
            [mx.concatenate([arrays[n, "gate"], arrays[n, "up"]]) for n in numbers]
        )
        packed[f"{place}down_proj"] = mx.stack([arrays[n, "down"] for n in numbers])
    return packed


def _declared_transposed(declared: Any) -> set[str]:
    """Expert parameters that transformers holds as (experts, inputs, outputs): the modeling class
    declares it (`is_transposed`)."""
    if declared is None:
        return set()
    from mergekit_yoyo.model.config import meta_model

    return {
        f"{path}.{name}"
        for path, module in meta_model(declared).named_modules()
        if getattr(module, "is_transposed", False)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }


def _widened(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def _fit(weights: Mapping[str, mx.array], model: nn.Module) -> bool:
    """Whether the weights have the shapes of the model's, and none is missing."""
    wanted = dict(tree_flatten(model.parameters()))
    return all(name in weights and weights[name].shape == a.shape for name, a in wanted.items())


def _not_built(bridge: Bridge, error: Exception) -> YoyoError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = " ".join(lines[:3]) + (" ..." if len(lines) > 3 else "")
    doubts = "".join(f"; {doubt}" for doubt in bridge.doubts)
    model = name_of(bridge.model_class)
    return YoyoError(f"config.json: {model} does not take this checkpoint: {reason}{doubts}.")
