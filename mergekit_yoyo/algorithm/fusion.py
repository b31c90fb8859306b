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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.consensus import NO_RESIDUAL
from mergekit_yoyo.algorithm.consensus import consensus as tukey_consensus
from mergekit_yoyo.algorithm.inputs import check_anchor, check_kind, not_finite, promoted_dtype
from mergekit_yoyo.algorithm.options import (
    EPS,
    MAX_SCALE,
    RIDGE,
    TUKEY_C,
    Center,
    Consensus,
    Experts,
    Kind,
    MadMedian,
    Rescale,
    Settings,
    Strength,
)
from mergekit_yoyo.algorithm.packing import WHOLE, Packing, packing_for, problems
from mergekit_yoyo.algorithm.recall import fuse_by_recall
from mergekit_yoyo.algorithm.result import Details, FusionResult
from mergekit_yoyo.algorithm.span import Span, span_of
from mergekit_yoyo.algorithm.streaming import weighted_median_sum, weighted_sum


@torch.no_grad()
def fuse(
    tensors: Sequence[Tensor],
    *,
    consensus: Consensus = "tukey",
    center: Center = "geometric_median",
    anchor: int | None = None,
    rescale: Rescale = "mean",
    mad_median: MadMedian = "standard",
    tukey_c: float = TUKEY_C,
    max_scale: float = MAX_SCALE,
    eps: float = EPS,
    ridge: float = RIDGE,
    recall_strength: Strength = "auto",
    experts: Experts | Packing = "auto",
    kind: Kind = "auto",
    name: str = "tensor",
    labels: Sequence[str] | None = None,
    dry_run: bool = False,
) -> FusionResult:
    """Merge K tensors of one shape with YOYO-Fusion.

    tensors: K tensors of one shape and device, float64, float32, bfloat16 or float16, any strides;
        never written to. Inner products are float64, the result is rounded once to the promoted
        dtype.
    consensus: `tukey` is the published method, steps 4 to 9; `recall` keeps what each input learned
        (see `recall`). Of the options below, mad_median and max_scale are for `tukey`; ridge
        (rho), recall_strength (beta, or `auto`) and kind are for `recall`.
    center: the center of step 2; with `anchor` it is the input whose index is given by `anchor`.
    rescale: `mean` is steps 8 and 9 as published; `median` takes medians over the inputs, so that
        an input of wrong scale cannot set the scale of the merge. With recall, which restores
        nothing, `mean` leaves the inputs as they are and `median` gives all the median RMS.
    mad_median: the medians of step 7, `standard`, or `lower` as in the authors' script.
    tukey_c: Tukey's constant c. max_scale: lambda_max of step 6. eps: the formulas' epsilon.
    experts: `separate` merges each slice of the first axis on its own, and gate and up apart where
        `name` says `gate_up_proj`; `packed` and `auto` merge the tensor as it is.
    kind: what the tensor, or each expert of it, is in the network: `linear` [outputs, inputs, ...],
        `transposed` [inputs, outputs] (GPT-2's Conv1D), `embedding` [rows, width], `vector`. `auto`
        is `vector` for one axis and `linear` for more: an embedding must be called one.
    name, labels: the tensor's and the inputs' names in error messages.
    dry_run: only find out what the merge would do; the tensor of the result is the first input.

    Raises YoyoError for inputs that do not fit, options out of range and non-finite values.
    """
    settings = Settings(
        consensus=consensus,
        center=center,
        anchor=anchor,
        rescale=rescale,
        mad_median=mad_median,
        tukey_c=tukey_c,
        max_scale=max_scale,
        eps=eps,
        ridge=ridge,
        recall_strength=recall_strength,
        kind=kind,
    )
    labels = labels or [f"input {k}" for k in range(len(tensors))]
    dtype = promoted_dtype(tensors, name, labels)
    check_anchor(anchor, center, len(tensors), name)
    if len(tensors) == 1 or tensors[0].numel() == 0:
        return FusionResult.untouched(tensors[0])

    packing = experts if isinstance(experts, Packing) else packing_for(experts, name)
    inputs = [problems(x, packing) for x in tensors]
    if consensus == "recall":
        check_kind(kind, inputs[0].shape[1:], name)
    merge, out = tensors[0], None
    if not dry_run:
        merge = torch.empty(merge.shape, dtype=dtype, device=merge.device)
        out = problems(merge, packing)

    # steps 1 to 3: RMS, center, residuals
    span = span_of(inputs, center, anchor, eps)
    if span is None:
        raise not_finite(tensors, name, labels)
    steps = fuse_by_recall if consensus == "recall" else _fuse_by_tukey
    details = steps(inputs, span, settings, out)
    if out is not None:
        no_difference = details.residual_norms.max(1) <= np.maximum(span.noise, NO_RESIDUAL)
        _keep_identical(inputs, np.flatnonzero(no_difference), out)
    return FusionResult.of(merge, details, packed=packing != WHOLE)


def _fuse_by_tukey(
    tensors: Sequence[Tensor], span: Span, settings: Settings, out: Tensor | None
) -> Details:
    """Steps 4 to 9 for B problems [B, ...], written to `out` unless it is None."""
    # steps 4 to 7: y' = m + sum_k update_k R_k
    agreed = tukey_consensus(
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
