"""Merges of the real experts, by loss on held-out text of their domains.

    python benchmarks/quality/bench.py                        # SmolLM2-135M, code, german, headers
    python benchmarks/quality/bench.py --broken --write       # and a broken further model

Trains what is missing (`train.py`), merges in memory by the formulas of mergekit's `linear` and
`task_arithmetic` and by `fuse`, rounds to bfloat16 as `mergekit-yaml` would, and prints the mean
loss (nats a token) with the error of its difference from `linear`, paired over blocks. Every row is
kept in the cache, so that a run goes on where it stopped. Task arithmetic has the factor that is
best on the held-out text itself, which no user can know.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import numpy as np
import torch
from models import BASES, CACHE, DOMAINS, base_folder, texts_of
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from train import expert_folder
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from mergekit_yoyo.algorithm import fuse

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pages import show, write_option

BLOCKS, LENGTH, BATCH = 8, 256, 4
FACTORS = (0.5, 0.65, 0.8)
SEED = 5
Weights = Mapping[str, Tensor]
Merge = Callable[[Weights, list[Weights]], Weights]


def by_fuse(*, anchored: bool = False, **options: object) -> Merge:
    """A merge by our method, tensor by tensor."""

    def merge(base: Weights, experts: list[Weights]) -> Weights:
        center = {"center": "anchor", "anchor": 0} if anchored else {}
        return {
            name: fuse(
                [*([base[name]] if anchored else []), *(x[name] for x in experts)],
                kind="embedding" if "embed_tokens" in name else "auto",
                **options,
                **center,
            ).tensor
            for name in base
        }

    return merge


def around_base(factor: float | None) -> Merge:
    """Task arithmetic; None is the mean."""

    def merge(base: Weights, experts: list[Weights]) -> Weights:
        share = 1 / len(experts) if factor is None else factor
        return {
            name: x + share * sum(expert[name] - x for expert in experts)
            for name, x in base.items()
        }

    return merge


METHODS: dict[str, Merge] = {
    "linear": around_base(None),
    "recall, base as anchor": by_fuse(anchored=True, consensus="recall"),
    **{f"task arithmetic, {factor:g}": around_base(factor) for factor in FACTORS},
    "recall": by_fuse(consensus="recall"),
    "tukey": by_fuse(),
    "recall, base as anchor, ridge 3": by_fuse(anchored=True, consensus="recall", ridge=3.0),
    "recall, base as anchor, prior 1": by_fuse(anchored=True, consensus="recall", recall_prior=1.0),
    "recall, ridge 3": by_fuse(consensus="recall", ridge=3.0),
    "recall, twice the strength": by_fuse(consensus="recall", recall_strength=4.0),
}


def half(weights: Weights) -> Weights:
    """In bfloat16, as experts and merges are published."""
    return {name: x.to(torch.bfloat16) for name, x in weights.items()}


def blocks_of(base: str, domain: str, cache: Path) -> Tensor:
    """[BLOCKS, LENGTH] token ids, evenly from the held-out text of a domain."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder(base, cache))
    ids = torch.tensor(tokenizer(texts_of(domain, cache)[1], verbose=False).input_ids)
    starts = np.linspace(0, len(ids) - LENGTH, BLOCKS).astype(int)
    return torch.stack([ids[start : start + LENGTH] for start in starts])


class Reader:
    """A model that reads the blocks of some domains with any weights, in float32."""

    def __init__(self, base: str, domains: tuple[str, ...], cache: Path) -> None:
        folder = base_folder(base, cache)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.blocks = {domain: blocks_of(base, domain, cache) for domain in domains}

    def losses(self, weights: Weights) -> dict[str, list[float]]:
        """Mean loss of each block, by domain."""
        self.model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
        with torch.inference_mode():
            return {domain: self._of(blocks) for domain, blocks in self.blocks.items()}

    def _of(self, blocks: Tensor) -> list[float]:
        found = []
        for batch in blocks.split(BATCH):
            logits = self.model(input_ids=batch[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
            found += loss.mean(1).tolist()
        return found


def broken(base: Weights) -> Weights:
    """The base with noise of the size of its weights."""
    generator = torch.Generator().manual_seed(SEED)
    return {
        name: (x + x.float().square().mean().sqrt() * torch.randn(x.shape, generator=generator)).to(
            x.dtype
        )
        for name, x in base.items()
    }


def table(results: Mapping[str, dict[str, list[float]]], domains: tuple[str, ...]) -> list[str]:
    """Losses by domain, their mean, and its difference from linear with a paired error."""
    lines = [
        f"| | {' | '.join(domains)} | mean | against linear |",
        "|---|" + "---:|" * (len(domains) + 2),
    ]
    linear = np.array([results["linear"][domain] for domain in domains])
    for label, found in results.items():
        losses = np.array([found[domain] for domain in domains])
        off = (losses - linear).mean(0)  # a block of each domain is one observation
        error = off.std(ddof=1) / len(off) ** 0.5
        cells = [f"{x:.4f}" for x in (*losses.mean(1), losses.mean())]
        against = "" if label == "linear" else f"{off.mean():+.4f} ± {error:.4f}"
        lines.append(f"| {label} | {' | '.join(cells)} | {against} |")
    return lines


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", type=click.Choice(list(BASES)), default="smollm2-135m", show_default=True)
@click.option("--domain", "domains", multiple=True, type=click.Choice(DOMAINS), default=DOMAINS[:3])
@click.option("--broken", "spoiled", is_flag=True, help="Merge a broken further model in.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@write_option
def main(base: str, domains: tuple[str, ...], spoiled: bool, cache: Path, write: bool) -> None:
    transformers_logging.disable_progress_bar()
    origin = half(load_file(base_folder(base, cache) / "model.safetensors"))
    folders = [expert_folder(base, domain, cache) for domain in domains]
    experts = [half(load_file(folder / "model.safetensors")) for folder in folders]
    reader = Reader(base, domains, cache)
    name = f"{base}-{len(domains)}{'-broken' if spoiled else ''}"
    kept = cache / f"results-{name}-{'-'.join(domains)}.json"
    results = json.loads(kept.read_text()) if kept.is_file() else {}
    inputs = [*experts, broken(origin)] if spoiled else experts
    merges: dict[str, Callable[[], Weights]] = {
        "base alone": lambda: origin,
        **{f"expert: {d}": lambda x=x: x for d, x in zip(domains, experts, strict=True)},
        **{label: lambda merge=merge: merge(origin, inputs) for label, merge in METHODS.items()},
    }
    for label, made in merges.items():
        if label not in results:
            results[label] = reader.losses(half(made()))
            mean = np.mean(list(results[label].values()))
            click.echo(f"{label}: {mean:.4f}", err=True)
            kept.write_text(json.dumps(results))
    show(table(results, domains), "quality.md", f"quality-{name}", write=write)


if __name__ == "__main__":
    main()
