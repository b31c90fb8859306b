"""YOYO-Fusion, step by step: K fine-tunes of one tensor in, their merge out.

Everything the method needs of the D-dimensional space is a small matrix of inner products, so the
inputs are streamed once to get it and once more to write the result; the algebra between is K x K
in float64 on the host. The coordinate-wise median costs one pass more, for the RMS of step 1.

Steps 1 to 3 are the same for every consensus (`span`); what follows is the consensus' own (`tukey`,
`recall`).

Where this deviates from the authors' script of 2025-11-13:
1. The medians of step 7 are the standard ones (`mad_median="lower"` gives the script's).
2. The geometric median is converged to 1e-12, also on a data point; K = 2 gives the midpoint.
3. Scales of zero are floored, and directions at round-off level are rank loss.
4. Inner products and algebra are float64; the result is added in float32 or float64 and rounded
   once (to half precision by torch, which goes through float32).
5. Identical inputs are returned bit for bit.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.consensuses import CONSENSUSES
from mergekit_yoyo.algorithm.inputs import (
    check_anchor,
    counted,
    not_finite,
    priors_of,
    promoted_dtype,
    with_signs,
)
from mergekit_yoyo.algorithm.options import Choice, TensorKind, declared, options_of
from mergekit_yoyo.algorithm.packing import WHOLE, Packing, packing_for, problems
from mergekit_yoyo.algorithm.result import FusionResult
from mergekit_yoyo.algorithm.rounding import Destination
from mergekit_yoyo.algorithm.span import span_of
from mergekit_yoyo.algorithm.tolerances import NO_RESIDUAL
from mergekit_yoyo.errors import YoyoError


@torch.no_grad()
def fuse(
    tensors: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    anchor: int | None = None,
    base: int | None = None,
    kind: TensorKind = "auto",
    name: str = "tensor",
    seed: str | None = None,
    labels: Sequence[str] | None = None,
    dry_run: bool = False,
    **options: Any,
) -> FusionResult:
    """Merge K tensors of one shape with YOYO-Fusion.

    tensors: K tensors of one shape and device, float64, float32, bfloat16 or float16, any strides;
        never written to. Inner products are float64, the result is rounded once to the promoted
        dtype.
    weights: how much each model is trusted from the start, 1 each without. Their scale does not
        matter; a model of weight 0 is left out, also of the details of the result, but for an
        anchor, which then is the center and nothing else.
    anchor: with `center="anchor"`, the index of the input that is the center.
    base: with `sign_alignment="base"`, the index of the input whose signs all get; the anchor
        without.
    kind: what the tensor, or each expert of it, is in the network, which `recall` asks: `linear`
        [outputs, inputs, ...], `transposed` [inputs, outputs] (GPT-2's Conv1D), `embedding` [rows,
        width], `vector`. `auto` is `vector` for one axis and `linear` for more: an embedding must
        be called one.
    name, labels: the tensor's and the inputs' names in error messages.
    seed: of stochastic rounding, any word; the name without. Tensors of one seed draw alike.
    dry_run: only find out what the merge would do; the tensor of the result is the first input.
    options: those of `Options`, by name: consensus, center, rescale, tukey_c and so on. `experts`
        takes a `Packing` too: `separate` merges each slice of the first axis on its own, and gate
        and up apart where `name` says `gate_up_proj`; `packed` and `auto` merge the tensor as it
        is.

    Raises YoyoError for inputs that do not fit, options out of range and non-finite values.
    """
    packing = options.get("experts")
    if isinstance(packing, Packing):
        settled = options_of({k: v for k, v in options.items() if k != "experts"})
    else:
        settled = options_of(options)
        packing = packing_for(settled.experts, name)
    Choice(get_args(TensorKind)).checked("kind", kind)
    labels = labels or [f"input {k}" for k in range(len(tensors))]
    dtype = promoted_dtype(tensors, name, labels)
    check_anchor(anchor, settled.center, len(tensors), name)
    priors = priors_of(weights, len(tensors), name)
    kept = counted(priors.tolist(), anchor)
    if len(kept) < len(tensors):
        tensors, labels = [tensors[k] for k in kept], [labels[k] for k in kept]
        priors = priors[kept] * (len(kept) / priors.sum())
        anchor, base = (kept.index(k) if k in kept else None for k in (anchor, base))
    signs = {"none": None, "first": 0, "base": anchor if base is None else base}
    tensors = with_signs(tensors, signs[settled.sign_alignment], settled.sign_alignment, name)
    if len(tensors) == 1 or tensors[0].numel() == 0:
        return FusionResult.untouched(tensors[0])

    consensus = CONSENSUSES[settled.consensus]
    inputs = [problems(x, packing) for x in tensors]
    consensus.check(kind, inputs[0].shape[1:], name)
    merge, out = tensors[0], None
    if not dry_run:
        merge = torch.empty(merge.shape, dtype=dtype, device=merge.device)
        out = Destination.of(
            problems(merge, packing), settled.rounding, name if seed is None else seed
        )

    # steps 1 to 3: RMS, center, residuals
    span = span_of(inputs, settled.center, anchor, settled.eps, priors)
    if span is None:
        raise not_finite(tensors, name, labels)
    # what follows them
    try:
        details = consensus.merge(inputs, span, settled, anchor, kind, out)
    except FloatingPointError as error:
        raise YoyoError(f"{name}: {error}") from error
    if (priors != 1).any():
        details = replace(details, priors=np.broadcast_to(priors, details.weights.shape))
    if out is not None:
        no_difference = details.residual_norms.max(1) <= np.maximum(span.noise, NO_RESIDUAL)
        _keep_identical(inputs, np.flatnonzero(no_difference), out.tensor)
    return FusionResult.of(merge, details, packed=packing != WHOLE)


def _keep_identical(tensors: Sequence[Tensor], suspects: NDArray[np.int64], out: Tensor) -> None:
    """Copy the input, bit for bit, to the problems whose inputs are all the same."""
    for problem in suspects:
        if all(torch.equal(x[problem], tensors[0][problem]) for x in tensors[1:]):
            out[problem].copy_(tensors[0][problem])


def _signature() -> inspect.Signature:
    """`fuse` with its options one by one, as `help` and editors show it."""
    own = inspect.signature(fuse).parameters.values()
    by_name = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default)
        for option in declared()
    ]
    fixed = [parameter for parameter in own if parameter.kind != parameter.VAR_KEYWORD]
    return inspect.Signature([*fixed, *by_name], return_annotation=FusionResult)


fuse.__signature__ = _signature()  # type: ignore[attr-defined]
