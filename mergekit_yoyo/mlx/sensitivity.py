"""What each module costs a model at each width: measured, one module at a time.

A module is quantized and dequantized in place while all others stay whole, and the divergence from
the whole model is taken on text. Down to 4 bits the divergence goes with the square of the weights'
error, so that the widths above the narrowest of these are not measured but follow from how much
smaller their error is; 2 and 3 bits, where it does not, are always measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mergekit_yoyo.mlx.calibration import replaced
from mergekit_yoyo.mlx.divergence import Reference
from mergekit_yoyo.mlx.plan import Placement
from mergekit_yoyo.progress import Progress

QUADRATIC_FROM = 4  # bits

Costs = dict[str, float]  # nats a token, by text


@dataclass(frozen=True)
class Candidate:
    """One width of a module, and what it does. costs: by text."""

    placement: Placement
    costs: Costs


def measured_widths(widths: Sequence[int]) -> list[int]:
    """Of the widths in play, those that are measured: up to 4 bits, or the narrowest."""
    narrow = [width for width in widths if width <= QUADRATIC_FROM]
    return narrow or [min(widths)]


def sensitivities(
    model: nn.Module,
    reference: Reference,
    placements: Mapping[str, Sequence[Placement]],
    dtype: mx.Dtype,
    progress: Progress,
) -> dict[str, list[Candidate]]:
    """What each way to quantize each module costs.

    Args:
        model: whole; it is changed on the way, and whole again at the end.
        reference: of the whole model.
        placements: by module, the ways that are in play.
        dtype: of the weights as they are stored, in which they will be quantized.
        progress: told of each measurement, after `begin`.
    """
    found = {}
    modules = dict(model.named_modules())
    for path, ways in placements.items():
        module = modules[path]
        measured = measured_widths([way.bits for way in ways if way.bits])
        costs: dict[int, Costs] = {}
        errors = {}
        for way in ways:
            if way.bits is None:
                continue
            rounded = rounded_weight(module, way.quantization or {}, dtype)
            errors[way.bits] = _square_error(module.weight, rounded)
            if way.bits in measured:
                with replaced(model, {path: rounded}):
                    parts = reference.divergence(model)
                costs[way.bits] = {name: max(0.0, float(kl.mean())) for name, kl in parts.items()}
                progress.advance()
        if costs:
            widest = max(costs)
            for bits in errors.keys() - costs.keys():
                share = errors[bits] / errors[widest] if errors[widest] else 0.0
                costs[bits] = {name: cost * share for name, cost in costs[widest].items()}
        nothing = dict.fromkeys(next(iter(costs.values()), {}), 0.0)
        found[path] = [Candidate(way, costs.get(way.bits or 0, nothing)) for way in ways]
    return found


def rounded_weight(module: Any, quantization: Mapping[str, Any], dtype: mx.Dtype) -> mx.array:
    """A module's weight as it would be read from an export; dtype: as it is stored."""
    weight = module.weight
    parts = mx.quantize(weight.astype(dtype), **quantization)
    return mx.dequantize(*parts, **quantization).astype(weight.dtype)


def _square_error(weight: mx.array, rounded: mx.array) -> float:
    return float(mx.square(weight.astype(mx.float32) - rounded.astype(mx.float32)).sum())
