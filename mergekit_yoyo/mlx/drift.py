"""How far an mlx model's logits are from others: drift by quantization, on a few prompts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model
from numpy.typing import NDArray

from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.model.logits import log_softmax

if TYPE_CHECKING:
    from mergekit_yoyo.mlx.seeing import Inputs

Logits = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Drift:
    """How far the written model's logits are from the unquantized ones.

    Attributes:
        max_difference: largest difference, in standard deviations of the unquantized logits.
        top1_agreement: share of positions where both find the same next token most likely.
        kl: mean Kullback-Leibler divergence per position, in nats.
    """

    max_difference: float
    top1_agreement: float
    kl: float


def measure_drift(expected: Logits, actual: Logits) -> Drift:
    """Compare two lists of logits, one array of (positions, vocabulary) per prompt.

    Raises:
        YoyoError: either logits are not finite.
    """
    new, old = np.concatenate(actual), np.concatenate(expected)
    if not np.isfinite(old).all():
        raise YoyoError("the unquantized model's logits are not finite: the checkpoint is damaged.")
    if not np.isfinite(new).all():
        raise YoyoError("the quantized model's logits are not finite. Choose a wider recipe.")
    log_p, log_q = log_softmax(old), log_softmax(new)
    return Drift(
        max_difference=float(np.abs(new - old).max() / old.std()),
        top1_agreement=float((new.argmax(-1) == old.argmax(-1)).mean()),
        kl=float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()),
    )


def mlx_logits(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    float32: bool = False,
    picture: "Inputs | None" = None,
) -> Logits:
    """The logits of every position of every prompt; `float32` first widens all weights.

    picture: a further prompt, for a model that sees.
    """
    if float32:
        model.set_dtype(mx.float32)
    logits = [np.array(model(mx.array([list(p)]))[0].astype(mx.float32)) for p in prompts]
    return logits if picture is None else [*logits, model.see(picture)]


def written_logits(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    notes: list[str],
    picture: "Inputs | None" = None,
) -> Logits:
    """The logits of an export as mlx-lm loads it; mlx-vlm, where there is a prompt with a picture.

    Where mlx cannot compute in its dtype on this machine (its CPU build has expert layers in
    float32 only), weights are widened to float32 first, and `notes` tells.
    """
    if picture is None:
        model, _ = load_model(folder)
    else:
        from mergekit_yoyo.mlx.seeing import load_written

        model = load_written(folder)
    try:
        return mlx_logits(model, prompts, picture=picture)
    except RuntimeError as error:
        notes.append(f"drift measured in float32: mlx on this machine says {error}")
        with running("mlx", folder):
            return mlx_logits(model, prompts, float32=True, picture=picture)


@contextmanager
def running(library: str, folder: Path) -> Iterator[None]:
    """A forward pass that fails, whatever in the model is the reason, as one sentence."""
    try:
        yield
    except Exception as error:  # models of every kind fail in ways of their own
        raise YoyoError(
            f"{folder}: {library} cannot run the model ({first_line(error)}). Is it whole, and is "
            "the tokenizer its own?"
        ) from None
