"""`--rounding`: the modules of a plan, quantized with better scales, or with errors fed forward."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.mlx.calibration import Calibration
from mergekit_yoyo.mlx.plan import ExportPlan, Placement
from mergekit_yoyo.mlx.recipes import Recipe
from mergekit_yoyo.mlx.rounding import Floats, Rounded, fed_forward, searched, searched_mxfp4
from mergekit_yoyo.progress import Progress

Rounding = Literal["nearest", "search", "feedback"]
MOMENT_BYTES = 2_000_000_000  # of second moments that are held at once


def round_better(
    model: nn.Module,
    plan: ExportPlan,
    rounding: Rounding,
    calibration: Calibration | None,
    progress: Progress,
) -> list[str]:
    """Quantize the modules of `plan` in `model`; what it leaves is for `plan.quantize`.

    Args:
        model: to be written, its dtype as it will be.
        plan: what each module gets.
        rounding: `search`, or `feedback`, for which the text is read.
        calibration: the whole model and its text, for `feedback`.
        progress: told of each module.

    Returns:
        Notes on what was rounded otherwise.
    """
    modules = dict(model.named_modules())
    planned = [p for p in plan.placements if p.bits is not None]
    progress.begin("Rounding", total=len(planned), unit="modules")
    wanted = [
        p
        for p in planned
        if rounding == "feedback" and p.mode == "affine" and _takes_rows(modules[p.path])
    ]
    fed = set()
    for placement, moments in _with_moments(wanted, modules, calibration):
        module = modules[placement.path]
        weight = module.weight
        rounded = fed_forward(weight, *_sizes(placement), weight.dtype, moments)
        _put(model, placement, module, rounded)
        fed.add(placement.path)
        progress.advance()
    by_search = [p for p in planned if p.path not in fed]
    for placement in by_search:
        module = modules[placement.path]
        weight = module.weight
        if placement.mode == "affine":
            rounded = searched(weight, *_sizes(placement), weight.dtype)
            _put(model, placement, module, rounded)
        elif placement.mode == "mxfp4":
            _put(model, placement, module, searched_mxfp4(weight))
        progress.advance()
    if rounding == "feedback" and by_search:
        paths = ", ".join(p.path for p in by_search)
        return [f"scales by search alone, having no inputs or no affine scales: {paths}"]
    return []


def check_rounding(recipe: Recipe, rounding: Rounding) -> None:
    """Refuse a rounding that a recipe has no use for.

    Raises:
        YoyoError: nothing is quantized, or in a mode whose scales are not searched here.
    """
    if rounding == "nearest":
        return
    if not recipe.quantizes:
        raise YoyoError(f"--rounding {rounding}: {recipe.name} quantizes nothing. Leave it out.")
    known = ("affine",) if rounding == "feedback" else ("affine", "mxfp4")
    if recipe.mode not in known:
        raise YoyoError(
            f"--rounding {rounding}: {recipe.mode} is rounded as mlx does it; it is for "
            f"{' and '.join(known)} recipes. Leave it out."
        )


def _sizes(placement: Placement) -> tuple[int, int]:
    assert placement.bits is not None
    assert placement.group_size is not None
    return placement.bits, placement.group_size


def _takes_rows(module: nn.Module) -> bool:
    """Whether it multiplies inputs; an embedding, even if it is the head too, looks rows up."""
    return not isinstance(module, nn.Embedding)


def _put(model: nn.Module, placement: Placement, module: Any, rounded: Rounded) -> None:
    """Replace a module by its quantized form, with these codes in place of mlx's own."""
    quantized: Any = module.to_quantized(**(placement.quantization or {}))
    quantized.weight = rounded.packed(_sizes(placement)[0])
    quantized.scales = rounded.scales
    if rounded.biases is not None:
        quantized.biases = rounded.biases
    mx.eval(quantized.parameters())
    model.update_modules(tree_unflatten([(placement.path, quantized)]))


class _Listener(nn.Module):  # type: ignore[misc]
    """A module that adds up x x^T over the inputs x that its rows are multiplied with.

    Latent attention multiplies the columns of `embed_q` (`transpose=False`) when it reads more than
    one token; these inputs say nothing about errors along a row.
    """

    def __init__(self, module: nn.Module, inputs: int) -> None:
        super().__init__()
        self.module = module
        self._moments = mx.zeros((inputs, inputs))

    def __call__(self, inputs: mx.array, *more: Any, **named: Any) -> mx.array:
        if named.get("transpose", True):
            rows = inputs.reshape(-1, inputs.shape[-1]).astype(mx.float32)
            self._moments = self._moments + rows.T @ rows
        outputs: mx.array = self.module(inputs, *more, **named)
        return outputs


def _with_moments(
    placements: Sequence[Placement], modules: dict[str, Any], calibration: Calibration | None
) -> Iterator[tuple[Placement, Floats]]:
    """Each placement with the second moments of its inputs, so many at once as memory holds.

    One whose rows no input reaches is left out. The experts of a layer share one: of all tokens,
    whichever expert they went to.
    """
    if calibration is None:
        return
    windows = [window for text in calibration.choosing.values() for window in text]
    whole = dict(calibration.model.named_modules())
    left = list(placements)
    while left:
        part: list[tuple[Placement, _Listener]] = []
        size = 0
        while left and (not part or size < MOMENT_BYTES):
            inputs = modules[left[0].path].weight.shape[-1]
            size += 4 * inputs**2
            part.append((left[0], _Listener(whole[left[0].path], inputs)))
            left.pop(0)
        _swap(calibration.model, {p.path: listener for p, listener in part})
        try:
            for window in windows:
                logits = calibration.model(mx.array([list(window.tokens)]))
                mx.eval(logits, [listener._moments for _, listener in part])
        finally:
            _swap(calibration.model, {p.path: listener.module for p, listener in part})
        for placement, listener in part:
            moments = np.array(listener._moments)
            if moments.any():
                yield placement, moments


def _swap(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    model.update_modules(tree_unflatten(list(modules.items())))
