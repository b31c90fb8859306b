"""How well logits predict a text, and how far they are from another model's: in float64."""

import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.measured import WindowSums
from mergekit_yoyo.model.logits import log_softmax

_ROWS = 64  # positions at once: a vocabulary has 250,000 words


def window_sums(
    logits: NDArray[np.float32],
    targets: NDArray[np.int64],
    reference: NDArray[np.float32] | None = None,
) -> WindowSums:
    """Loss, divergence and agreement of one window.

    Args:
        logits: (positions, words), of what comes next at each position.
        targets: (positions,), the token that does.
        reference: logits of the model to compare with, of the same shape.

    Returns:
        The sums over all positions: -log q(target), sum p log(p / q) with p the reference's
        distribution and q this one's, and whether both have the same most likely token.

    Raises:
        YoyoError: logits that are not finite, or of another vocabulary.
    """
    if reference is not None and reference.shape != logits.shape:
        raise YoyoError(
            f"the reference has logits of {reference.shape[-1]} words, this model of "
            f"{logits.shape[-1]}: expected the same vocabulary."
        )
    loss = divergence = 0.0
    agreeing = 0
    for begin in range(0, len(targets), _ROWS):
        rows = slice(begin, begin + _ROWS)
        log_q = log_softmax(logits[rows])
        loss -= float(np.take_along_axis(log_q, targets[rows, None], axis=-1).sum())
        if reference is not None:
            log_p = log_softmax(reference[rows])
            divergence += float((np.exp(log_p) * (log_p - log_q)).sum())
            agreeing += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
    if not np.isfinite([loss, divergence]).all():
        raise YoyoError("the model's logits are not finite: it is damaged.")
    if reference is None:
        return WindowSums(tokens=len(targets), loss=loss)
    return WindowSums(tokens=len(targets), loss=loss, divergence=divergence, agreeing=agreeing)
