"""What real models are read with: blocks of held-out text, and a model whose weights change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import base_folder, texts_of
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

BLOCKS, LENGTH, BATCH = 8, 256, 4
Weights = Mapping[str, Tensor]
Losses = Mapping[str, list[float]]


def half(weights: Weights) -> Weights:
    """In bfloat16, as experts and merges are published."""
    return {name: x.to(torch.bfloat16) for name, x in weights.items()}


def tokens_of(tokenizer: Any, text: str) -> tuple[Tensor, Tensor]:
    """What a model reads before all text (Gemma is a nat worse without it; of others nothing), and
    the text: [begin], [tokens]."""
    begin = torch.tensor(tokenizer("").input_ids, dtype=torch.long)
    return begin, torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def blocks_of(base: str, text: str, cache: Path, count: int) -> Tensor:
    """[count, begin + LENGTH] token ids, evenly from a text."""
    begin, ids = tokens_of(AutoTokenizer.from_pretrained(base_folder(base, cache)), text)
    starts = np.linspace(0, len(ids) - LENGTH, count).astype(int)
    return torch.stack([torch.cat((begin, ids[start : start + LENGTH])) for start in starts])


class Reader:
    """A model that reads the blocks of some domains with any weights, in float32."""

    def __init__(self, base: str, domains: tuple[str, ...], cache: Path, count: int) -> None:
        folder = base_folder(base, cache)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.blocks = {
            domain: blocks_of(base, texts_of(domain, cache)[1], cache, count) for domain in domains
        }

    def losses(
        self, weights: Weights, domains: Sequence[str] | None = None
    ) -> dict[str, list[float]]:
        """Mean loss of each block, by domain: of all, or of some."""
        self.model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
        with torch.inference_mode():
            return {d: self._of(self.blocks[d]) for d in (domains or self.blocks)}

    def _of(self, blocks: Tensor) -> list[float]:
        found = []
        for batch in blocks.split(BATCH):
            logits = self.model(input_ids=batch[:, :-1], use_cache=False).logits
            targets = batch[:, 1:]
            loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            found += loss.view_as(targets).mean(1).tolist()
        return found


def mean_of(losses: Losses) -> float:
    """The mean loss over domains."""
    return float(np.mean([np.mean(values) for values in losses.values()]))
