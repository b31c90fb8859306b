"""YOYO-Fusion, step by step: K fine-tunes of one tensor in, their merge out.

Everything the method needs of the D-dimensional space is a small matrix of inner products, so the
inputs are streamed once to get it and once more to write the result; the algebra between is K x K
in float64 on the host. The coordinate-wise median costs one pass more, for the RMS of step 1.

Where this deviates from the authors' script of 2025-11-13:
1. The medians of step 7 are the standard ones (`mad_median="lower"` gives the script's).
2. The geometric median is converged to 1e-12, also on a data point; K = 2 gives the midpoint.
3. Scales of zero are floored, and directions at round-off level are rank loss.
4. Inner products and algebra are float64; the result is added in float32 or float64 and rounded
   once (to half precision by torch, which goes through float32).
5. Identical inputs are returned bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.consensus import consensus
from mergekit_yoyo.algorithm.options import (
    EPS,
    MAX_SCALE,
    TUKEY_C,
    Center,
    Experts,
    MadMedian,
    Rescale,
    check_choice,
    check_number,
)
from mergekit_yoyo.algorithm.packing import WHOLE, Packing, packing_for, problems
from mergekit_yoyo.algorithm.result import Details, FusionResult
from mergekit_yoyo.algorithm.robust import Array
from mergekit_yoyo.algorithm.span import span_of
from mergekit_yoyo.algorithm.streaming import weighted_median_sum, weighted_sum
from mergekit_yoyo.errors import YoyoError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    center: Center
    anchor: int | None
    rescale: Rescale
    mad_median: MadMedian
    tukey_c: float
    max_scale: float
    eps: float

    def average(self, values: Array) -> Array:
        """Mean or median over the inputs, for steps 8 and 9."""
        return np.asarray(np.mean(values, 1) if self.rescale == "mean" else np.median(values, 1))


@torch.no_grad()
def fuse(
    tensors: Sequence[Tensor],
    *,
    center: Center = "geometric_median",
    anchor: int | None = None,
    rescale: Rescale = "mean",
    mad_median: MadMedian = "standard",
    tukey_c: float = TUKEY_C,
    max_scale: float = MAX_SCALE,
    eps: float = EPS,
    experts: Experts | Packing = "auto",
    name: str = "tensor",
    labels: Sequence[str] | None = None,
    dry_run: bool = False,
) -> FusionResult:
    """Merge K tensors of one shape with YOYO-Fusion.

    tensors: K tensors of one shape and device, float64, float32, bfloat16 or float16, any strides;
        never written to. Inner products are float64, the result is rounded once to the promoted
        dtype.
    center: the center of step 2; with `anchor` it is the input whose index is given by `anchor`.
    rescale: `mean` is steps 8 and 9 as published; `median` takes medians over the inputs, so that
        an input of wrong scale cannot set the scale of the merge.
    mad_median: the medians of step 7, `standard`, or `lower` as in the authors' script.
    tukey_c: Tukey's constant c. max_scale: lambda_max of step 6. eps: the formulas' epsilon.
    experts: `separate` merges each slice of the first axis on its own, and gate and up apart where
        `name` says `gate_up_proj`; `packed` and `auto` merge the tensor as it is.
    name, labels: the tensor's and the inputs' names in error messages.
    dry_run: only find out what the merge would do; the tensor of the result is the first input.

    Raises YoyoError for inputs that do not fit, options out of range and non-finite values.
    """
    settings = _Settings(
        center=center,
        anchor=anchor,
        rescale=rescale,
        mad_median=mad_median,
        tukey_c=tukey_c,
        max_scale=max_scale,
        eps=eps,
    )
    labels = labels or [f"input {k}" for k in range(len(tensors))]
    dtype = _promoted_dtype(tensors, name, labels)
    _check_settings(settings, len(tensors), name)
    if len(tensors) == 1 or tensors[0].numel() == 0:
        return FusionResult.untouched(tensors[0])

    packing = experts if isinstance(experts, Packing) else packing_for(experts, name)
    inputs = [problems(x, packing) for x in tensors]
    if dry_run:
        out = tensors[0]
        details = _fuse_problems(inputs, None, settings)
    else:
        out = torch.empty(tensors[0].shape, dtype=dtype, device=tensors[0].device)
        details = _fuse_problems(inputs, problems(out, packing), settings)
    if details is None:
        raise _not_finite(tensors, name, labels)
    return FusionResult.of(out, details, packed=packing != WHOLE)


def _fuse_problems(
    tensors: Sequence[Tensor], out: Tensor | None, settings: _Settings
) -> Details | None:
    """Steps 1 to 9 for B problems [B, ...], written to `out`; None if an input is not finite."""
    # steps 1 to 3: RMS, center, residuals
    span = span_of(tensors, settings.center, settings.anchor, settings.eps)
    if span is None:
        return None

    # steps 4 to 7: y' = m + sum_k update_k R_k
    agreed = consensus(
        span.residual_gram,
        span.noise,
        mad_median=settings.mad_median,
        tukey_c=settings.tukey_c,
        max_scale=settings.max_scale,
        eps=settings.eps,
    )
    update = agreed.update
    y = span.center + np.einsum("bk,bkm->bm", update, span.residuals)

    # steps 8 and 9: restore RMS and norm
    mean_rms = settings.average(span.rms)
    norm = mean_rms * span.norm(y)
    scale = mean_rms * settings.average(span.norms) / (norm + settings.eps)

    # the same, in terms of the inputs: R_k = u_k - m, u_k = unit_scale_k x_k
    remaining_center = 1.0 - update.sum(1)
    if span.around_median:
        coefficients = np.full_like(update, np.nan)
        weights = scale[:, None] * span.unit_scale * update
        if out is not None:
            weighted_median_sum(tensors, span.unit_scale, scale * remaining_center, weights, out)
    else:
        of_units = update + remaining_center[:, None] * span.center_weights
        coefficients = scale[:, None] * span.unit_scale * of_units
        if out is not None:
            weighted_sum(tensors, coefficients, out)
    if out is not None:
        _keep_identical(tensors, np.flatnonzero(agreed.rank == 0), out)

    return Details(
        weights=agreed.weights,
        coefficients=coefficients,
        center_weights=span.center_weights,
        rank=agreed.rank,
        energy=agreed.energy,
        energy_scale=agreed.energy_scale,
        direction_scales=agreed.direction_scales,
        global_scale=agreed.global_scale,
        residual_gram=span.residual_gram,
        residual_norms=agreed.residual_norms,
        rms=span.rms,
        norms=span.norms,
        iterations=span.iterations,
        center_status=span.status,
    )


def _keep_identical(tensors: Sequence[Tensor], suspects: NDArray[np.int64], out: Tensor) -> None:
    """Copy the input, bit for bit, to the problems whose inputs are all the same."""
    for problem in suspects:
        if all(torch.equal(x[problem], tensors[0][problem]) for x in tensors[1:]):
            out[problem].copy_(tensors[0][problem])


def _promoted_dtype(tensors: Sequence[Tensor], name: str, labels: Sequence[str]) -> torch.dtype:
    if not tensors:
        raise YoyoError(f"{name}: expected at least one input; got none.")
    if len(labels) != len(tensors):
        raise YoyoError(f"labels: expected {len(tensors)}, one per input; got {len(labels)}.")
    first = tensors[0]
    for x, label in zip(tensors, labels, strict=True):
        if x.dtype not in DTYPES:
            raise YoyoError(
                f"{name}: {label} is {x.dtype}; expected float64, float32, bfloat16 or float16. "
                "Quantized weights must be dequantized first: their scales are separate tensors."
            )
        if x.shape != first.shape:
            raise YoyoError(
                f"{name}: {label} has shape {list(x.shape)}, {labels[0]} has {list(first.shape)}; "
                "all inputs must be fine-tunes of one architecture with one vocabulary."
            )
        if x.device != first.device:
            raise YoyoError(f"{name}: {label} is on {x.device}, {labels[0]} on {first.device}.")
    return reduce(torch.promote_types, (x.dtype for x in tensors))


def _check_settings(settings: _Settings, count: int, name: str) -> None:
    for option in ("center", "rescale", "mad_median"):
        check_choice(option, getattr(settings, option))
    for option in ("tukey_c", "max_scale", "eps"):
        check_number(option, getattr(settings, option))
    anchor = settings.anchor
    if (settings.center == "anchor") != (anchor is not None):
        raise YoyoError(
            f"{name}: center: anchor and the index `anchor` go together; "
            f"got center: {settings.center}, anchor: {anchor}."
        )
    if anchor is not None and (type(anchor) is not int or not 0 <= anchor < count):
        raise YoyoError(f"anchor: expected an index from 0 to {count - 1}; got {anchor!r}.")


def _not_finite(tensors: Sequence[Tensor], name: str, labels: Sequence[str]) -> YoyoError:
    bad = [label for x, label in zip(tensors, labels, strict=True) if not x.isfinite().all()]
    if not bad:
        return YoyoError(f"{name}: the squares of its values overflow float64.")
    return YoyoError(
        f"{name}: {', '.join(bad)} holds NaN or infinite values. "
        "Replace that model: no merge of it can be trusted."
    )
