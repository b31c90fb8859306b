"""Recall's ridge, prior and strength: held-out losses of merges of the example experts.

    python benchmarks/recall_settings.py           # two Markdown tables, about ten minutes
    python benchmarks/recall_settings.py --write   # into docs/recall.md

The merges are made in memory, by `fuse` in float64, and rounded to bfloat16 as `mergekit-yaml`
would. P is linear in alpha, and the merge in beta: each ridge is solved for twice, and every other
cell is a weighted sum. `linear`, and task arithmetic over its factor, stand beside them.
"""

from collections.abc import Iterator, Mapping

import click
import torch
from held_out import BATCH, BLOCK, DOMAINS, EXPERTS, HELD_OUT
from pages import show, write_option
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from mergekit_yoyo.algorithm import fuse

COUNTS = (3, 5)
RIDGES = (0.3, 1.0, 3.0, 10.0, 30.0)
FACTORS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
STRENGTHS = (0.5, 1.0, 2.0)  # of the closed form
Weights = Mapping[str, Tensor]


class Bench:
    """The experts of some domains, and the mean loss of any weights on their held-out texts."""

    def __init__(self, domains: tuple[str, ...]) -> None:
        self.model = _model("base")
        self.base: Weights = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.experts: list[Weights] = [_model(domain).state_dict() for domain in domains]
        tokenizer = AutoTokenizer.from_pretrained(EXPERTS / "base")
        self.texts = [_blocks(tokenizer, domain) for domain in domains]

    def loss(self, weights: Weights) -> float:
        """Mean over the domains, nats per byte, of the weights rounded to bfloat16."""
        self.model.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in weights.items()})
        with torch.inference_mode():
            return sum(map(self._on, self.texts)) / len(self.texts)

    def _on(self, text: tuple[Tensor, Tensor]) -> float:
        total = sum(
            cross_entropy(
                self.model(input_ids=x).logits.flatten(0, 1), y.flatten(), reduction="sum"
            )
            for x, y in zip(*(part.split(BATCH) for part in text), strict=True)
        )
        return float(total) / text[1].numel()

    def recall(self, *, anchored: bool, **options: float) -> Weights:
        """Recall of the experts, strength 1, with or without the base as anchor."""
        center = {"center": "anchor", "anchor": 0} if anchored else {}
        return {
            name: fuse(
                [*([self.base[name]] if anchored else []), *(x[name] for x in self.experts)],
                consensus="recall",
                recall_precision="float64",
                kind="embedding" if "embed_tokens" in name else "auto",
                **{"recall_strength": 1.0, **options, **center},
            ).tensor
            for name in self.base
        }

    def around_base(self, factor: float) -> Weights:
        """Task arithmetic; a factor of 1 / K is the mean."""
        return {
            name: base + factor * sum(x[name] - base for x in self.experts)
            for name, base in self.base.items()
        }


def _model(name: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(EXPERTS / name, dtype=torch.float32).eval()


def _blocks(tokenizer: AutoTokenizer, domain: str) -> tuple[Tensor, Tensor]:
    text = (HELD_OUT / f"{domain}.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    blocks = ids[: len(ids) // BLOCK * BLOCK].view(-1, BLOCK)
    first = torch.full((len(blocks), 1), tokenizer.bos_token_id)
    return torch.cat((first, blocks[:, :-1]), dim=1), blocks


def _between(low: Weights, high: Weights, share: float) -> Weights:
    return {name: x + share * (high[name] - x) for name, x in low.items()}


def rows(bench: Bench) -> Iterator[str]:
    """The table, a line at a time."""
    count = len(bench.experts)
    alphas = {"1/K": 1 / count, "2/K": min(1.0, 2 / count), "1": 1.0}
    yield (
        f"| {count} experts, ridge | "
        + " | ".join(
            [*(f"anchor, prior {name}" for name in alphas)]
            + [f"no base, {strength:g} x closed form" for strength in STRENGTHS]
        )
        + " |"
    )
    yield "|---|" + "---:|" * (len(alphas) + len(STRENGTHS))
    closed_form = (count - 1) / (count - 2)
    center = bench.recall(anchored=False, recall_strength=1e-12)
    for ridge in track(RIDGES, f"{count} experts", console=Console(stderr=True)):
        around = [bench.recall(anchored=True, ridge=ridge, recall_prior=a) for a in (0.0, 1.0)]
        free = bench.recall(anchored=False, ridge=ridge)
        cells = [bench.loss(_between(*around, alpha)) for alpha in alphas.values()]
        cells += [bench.loss(_between(center, free, s * closed_form)) for s in STRENGTHS]
        yield f"| {ridge:g} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |"
    best = min(FACTORS, key=lambda factor: bench.loss(bench.around_base(factor)))
    task = bench.loss(bench.around_base(best))
    linear = bench.loss(bench.around_base(1 / count))
    yield f"| linear {linear:.4f} | task arithmetic, best factor {best:g}: {task:.4f} | | | | | |"


@click.command(help=__doc__.split("\n\n")[0])
@write_option
def main(write: bool) -> None:
    transformers_logging.disable_progress_bar()
    for count in COUNTS:
        bench = Bench(DOMAINS[:count])
        show(list(rows(bench)), "recall.md", f"recall-settings-{count}", write=write)


if __name__ == "__main__":
    main()
