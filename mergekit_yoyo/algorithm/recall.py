"""Recall, the other consensus: each residual counts where in input space its model moved.

1. m: a center that broken inputs cannot move; omega_k: how far each input is trusted (`trust`).
   R_k = x_k - m, in the inputs' own scale; with `rescale: median` every input gets the median RMS
   first, so that one of wrong scale cannot set the scale of m.
2. A_k = R_k^T R_k / ||R_k||^2 + (rho / in) I: the energy of each model in the space of the layer's
   inputs, every model with the same total. Diagonal for embedding tables and vectors.
3. P = (sum_k omega_k R_k A_k) (sum_k omega_k A_k)^-1: errs least on every model's own inputs.
4. y = m + beta P. Norms are not restored.

After Model Merging via Data-Free Covariance Estimation (arXiv 2604.01329), which starts from a base
model, and RegMean (arXiv 2212.09849). Residuals from a robust center need no base, but each holds
1/K of every other model's move: beta makes up for that (`closed_form_strength`).
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mergekit_yoyo.algorithm.input_spaces import Weighing, merge_in_input_spaces
from mergekit_yoyo.algorithm.options import Settings
from mergekit_yoyo.algorithm.result import Details
from mergekit_yoyo.algorithm.span import Span
from mergekit_yoyo.algorithm.trust import closed_form_strength, trusted_center


def fuse_by_recall(
    tensors: Sequence[Tensor], span: Span, settings: Settings, out: Tensor | None
) -> Details:
    """Steps 1 to 4 for B problems [B, ...], written to `out` unless it is None.

    span: of the tensors, around any robust center, or around the anchor.
    """
    # step 1: trust on the scale of u_k, center and residuals on that of x_k, or on one for all
    trust = trusted_center(
        span.residual_gram, span.noise, settings.anchor, tukey_c=settings.tukey_c, eps=settings.eps
    )
    scale = np.ones_like(span.rms)
    if settings.rescale == "median":
        scale = np.median(span.rms, axis=1, keepdims=True) / span.rms
    residual_squares = span.own_residual_squares(scale, trust.center)
    counted = np.where(residual_squares > 0, trust.weights, 0.0)

    strength = closed_form_strength(counted, anchored=settings.anchor is not None)
    if settings.recall_strength != "auto":
        strength = np.where(strength > 0, settings.recall_strength, 0.0)

    # steps 2 to 4
    recalled, condition_number = merge_in_input_spaces(
        tensors,
        Weighing(scale, trust.center, counted, residual_squares, strength, settings.ridge),
        settings.kind,
        out,
    )
    return Details(
        weights=trust.weights,
        center_weights=trust.center,
        residual_gram=trust.residual_gram,
        residual_norms=np.sqrt(np.diagonal(trust.residual_gram, axis1=1, axis2=2).clip(0.0)),
        rms=span.rms,
        norms=span.norms,
        iterations=trust.iterations,
        center_status=trust.status,
        strength=strength,
        recalled=recalled,
        condition_number=condition_number,
    )
