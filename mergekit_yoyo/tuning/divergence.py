"""How far a merge is from a model, on text: the KL divergence, and the plain loss.

Of each position the model's most likely words are kept with their probabilities, the rest as one:

    KL = sum over kept words of p log(p / q) + p_rest log(p_rest / q_rest),

which is never more than the divergence over all words, and the same where all are kept. So a model
need not be in memory beside the merge, nor its logits on the disk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mergekit_yoyo.text import Window

KEPT = 512  # words of a position; the toys of this repository have fewer in all
_LOGITS = 2**26  # numbers at once: 268 MB
_BATCH = 32


@dataclass(frozen=True)
class Reference:
    """What a model says at the counted positions of all its windows, one after the other.

    words: [P, n] ids, likeliest first. logs: [P, n] float32, their log probabilities. rest: [P],
    the log probability of all others together; -inf where there are none. vocabulary: how many
    words were looked at; more have none of both models.
    """

    words: Tensor
    logs: Tensor
    rest: Tensor
    vocabulary: int

    def of_windows(self, windows: Sequence[Window], wanted: Sequence[Window]) -> "Reference":
        """The part for some of the windows, in the order of `wanted`."""
        begins, begin = {}, 0
        for window in windows:
            begins[window] = begin
            begin += len(window.positions)
        rows = torch.cat([torch.arange(len(w.positions)) + begins[w] for w in wanted])
        return Reference(self.words[rows], self.logs[rows], self.rest[rows], self.vocabulary)


@dataclass(frozen=True)
class Sample:
    """One window read by a merge: nats a token. kl: None where there is no model to compare."""

    kl: float | None
    loss: float


@torch.inference_mode()
def refer(model: Any, windows: Sequence[Window], vocabulary: int) -> Reference:
    """What `model` says on its windows. vocabulary: words that merge and model have in common."""
    words, logs, rest = [], [], []
    for _, logp in log_probabilities(model, windows, vocabulary):
        top = logp.topk(min(KEPT, vocabulary), dim=-1)
        words.append(top.indices.int().cpu())
        logs.append(top.values.cpu())
        rest.append(_rest(logp, top.indices).cpu())
    return Reference(torch.cat(words), torch.cat(logs), torch.cat(rest), vocabulary)


@torch.inference_mode()
def samples(model: Any, windows: Sequence[Window], reference: Reference | None) -> list[Sample]:
    """How far `model` is from the reference on each window, and its own loss there."""
    found = []
    vocabulary = None if reference is None else reference.vocabulary
    begin = 0
    for window, logp in log_probabilities(model, windows, vocabulary):
        wanted = torch.tensor([window.tokens[p] for p in window.positions], device=logp.device)
        loss = -logp.gather(1, wanted[:, None]).mean()
        kl = None
        if reference is not None:
            rows = slice(begin, begin + len(wanted))
            kl = float(divergence(logp, reference, rows).mean())
            begin += len(wanted)
        found.append(Sample(kl, float(loss)))
    return found


def divergence(logp: Tensor, reference: Reference, rows: slice) -> Tensor:
    """[P], the KL divergence of log probabilities [P, V] from rows of a reference, in nats."""
    words = reference.words[rows].to(logp.device).long()
    p, p_rest = reference.logs[rows].to(logp.device), reference.rest[rows].to(logp.device)
    q, q_rest = logp.gather(1, words), _rest(logp, words)
    kept = (p.exp() * (p - q)).sum(1)
    of_rest = torch.where(p_rest.isneginf(), 0.0, p_rest.exp() * (p_rest - q_rest))
    return kept + of_rest


def log_probabilities(
    model: Any,
    windows: Sequence[Window],
    vocabulary: int | None,
    *,
    batch_size: int = _BATCH,
) -> Iterator[tuple[Window, Tensor]]:
    """Each window with [P, V] float32: what the model expects at its counted positions."""
    width = int(model.get_output_embeddings().weight.shape[0])
    longest = max(len(window.tokens) for window in windows)
    size = max(1, min(batch_size, _LOGITS // (width * longest)))
    for begin in range(0, len(windows), size):
        batch = windows[begin : begin + size]
        longest = max(len(window.tokens) for window in batch)
        filled = [[*w.tokens, *[0] * (longest - len(w.tokens))] for w in batch]
        mask = [[1] * len(w.tokens) + [0] * (longest - len(w.tokens)) for w in batch]
        logits = model(
            input_ids=torch.tensor(filled, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
        ).logits
        for window, row in zip(batch, logits, strict=True):
            before = torch.tensor(window.positions, device=row.device) - 1
            yield window, row[before, :vocabulary].float().log_softmax(-1)


def _rest(logp: Tensor, words: Tensor) -> Tensor:
    """[P], the log probability of all words but these."""
    if words.shape[1] >= logp.shape[1]:
        return torch.full_like(logp[:, 0], -torch.inf)
    return logp.scatter(1, words.long(), -torch.inf).logsumexp(-1)
