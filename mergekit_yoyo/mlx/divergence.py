"""How far a changed mlx model is from the one it was, on text: KL divergence by window.

Of each position the most likely words are kept with their probabilities, the rest as one, so that
what is kept is small; the divergence is never more than that over all words, and nearly the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mergekit_yoyo.text import Window

KEPT = 512  # words of a position
BATCH = 4  # windows at once
_LEAST = 1e-6  # probability of all other words: less is rounding of float32

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Batch:
    """Windows that are read at once, and what the unchanged model says of them.

    tokens: [B, L], filled up on the right. rows, columns: [P], where the counted words are
    predicted. words: [P, n], ids. logs: [P, n], their log probabilities. rest: [P].
    """

    tokens: mx.array
    rows: mx.array
    columns: mx.array
    words: mx.array
    logs: Floats
    rest: Floats


class Reference:
    """What an unchanged model says of the windows of some texts."""

    def __init__(self, model: nn.Module, texts: Mapping[str, Sequence[Window]]) -> None:
        self._texts = {
            name: [
                _read(model, windows[begin : begin + BATCH])
                for begin in range(0, len(windows), BATCH)
            ]
            for name, windows in texts.items()
        }

    @property
    def tokens(self) -> int:
        """How many tokens one reading of all texts takes."""
        return sum(b.tokens.size for batches in self._texts.values() for b in batches)

    def divergence(self, model: nn.Module) -> dict[str, Floats]:
        """KL from the unchanged model to `model`, in nats a token, of each window of each text."""
        return {
            name: np.concatenate([_divergence(model, batch) for batch in batches])
            for name, batches in self._texts.items()
        }


def _read(model: nn.Module, windows: Sequence[Window]) -> _Batch:
    longest = max(len(window.tokens) for window in windows)
    tokens = mx.array([[*w.tokens, *[0] * (longest - len(w.tokens))] for w in windows])
    places = [(k, place - 1) for k, window in enumerate(windows) for place in window.positions]
    rows, columns = (mx.array(list(part)) for part in zip(*places, strict=True))
    logits, total = _logits(model, tokens, rows, columns)
    kept = min(KEPT, logits.shape[-1])
    words = mx.argpartition(-logits, kth=kept - 1, axis=-1)[:, :kept]
    logs, rest = _kept(logits, total, words)
    return _Batch(tokens, rows, columns, words, logs, rest)


def _divergence(model: nn.Module, batch: _Batch) -> Floats:
    logits, total = _logits(model, batch.tokens, batch.rows, batch.columns)
    logs, rest = _kept(logits, total, batch.words)
    kl = (np.exp(batch.logs) * (batch.logs - logs)).sum(-1)
    kl += batch.rest * (np.log(batch.rest) - np.log(rest))
    rows = np.array(batch.rows)
    return np.bincount(rows, kl) / np.bincount(rows)


def _logits(
    model: nn.Module, tokens: mx.array, rows: mx.array, columns: mx.array
) -> tuple[mx.array, mx.array]:
    """Logits [P, vocabulary] in float32 at some places, and the logarithm of their sum."""
    logits = model(tokens)[rows, columns].astype(mx.float32)
    return logits, mx.logsumexp(logits, axis=-1, keepdims=True)


def _kept(logits: mx.array, total: mx.array, words: mx.array) -> tuple[Floats, Floats]:
    """Log probabilities of `words`, and the probability of all others."""
    logs = np.array(mx.take_along_axis(logits, words, axis=-1) - total, dtype=np.float64)
    return logs, np.maximum(1 - np.exp(logs).sum(-1), _LEAST)
