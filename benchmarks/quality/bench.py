"""Merges of the real experts, by loss on held-out text of their domains.

    python benchmarks/quality/bench.py                        # SmolLM2-135M, code, german, headers
    python benchmarks/quality/bench.py --broken --write       # and a broken further model
    python benchmarks/quality/bench.py --small                # few methods and blocks: minutes

Trains what is missing (`train.py`), merges in memory by the methods of `methods.py`, rounds to
bfloat16 as `mergekit-yaml` would, and prints the mean loss (nats a token) with the error of its
difference from `linear`, paired over blocks. Every row is kept in the cache, so that a run goes on
where it stopped. Where a method has several settings, the one that is best on the held-out text
itself stands in the table, which no user can know.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache as once
from pathlib import Path

import click
import numpy as np
import torch
from methods import METHODS, Method, Weights
from models import BASES, CACHE, DOMAINS, base_folder, texts_of
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from train import expert_folder
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pages import show, write_option

BLOCKS, LENGTH, BATCH = 8, 256, 4
SMALL_BLOCKS = 2
SEED = 5
GROUPS = ("ours", "mergekit's", "of papers")
Losses = Mapping[str, list[float]]


def half(weights: Weights) -> Weights:
    """In bfloat16, as experts and merges are published."""
    return {name: x.to(torch.bfloat16) for name, x in weights.items()}


def blocks_of(base: str, domain: str, cache: Path, count: int) -> Tensor:
    """[count, LENGTH] token ids, evenly from the held-out text of a domain."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder(base, cache))
    ids = torch.tensor(tokenizer(texts_of(domain, cache)[1], verbose=False).input_ids)
    starts = np.linspace(0, len(ids) - LENGTH, count).astype(int)
    return torch.stack([ids[start : start + LENGTH] for start in starts])


class Reader:
    """A model that reads the blocks of some domains with any weights, in float32."""

    def __init__(self, base: str, domains: tuple[str, ...], cache: Path, count: int) -> None:
        folder = base_folder(base, cache)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.blocks = {domain: blocks_of(base, domain, cache, count) for domain in domains}

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


def grams(base: str, domain: str, cache: Path) -> Weights:
    """Of an expert, X^T X of the inputs of each linear layer on its own training text."""
    folder = expert_folder(base, domain, cache)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(tokenizer(texts_of(domain, cache)[0], verbose=False).input_ids)
    starts = np.linspace(0, len(ids) - LENGTH, BLOCKS).astype(int)
    found: dict[str, Tensor] = {}

    def listen(name: str) -> None:
        def hear(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2)
            found[name] = found.get(name, 0) + rows.T @ rows

        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hear)

    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            listen(f"model.{name}.weight")
    with torch.inference_mode():
        for start in starts:
            model(input_ids=ids[None, start : start + LENGTH], use_cache=False)
    return found


def against(losses: Losses, linear: Losses, domains: tuple[str, ...]) -> tuple[float, float]:
    """The mean difference from linear, and its error; a block of each domain is one observation."""
    off = np.mean([np.subtract(losses[d], linear[d]) for d in domains], axis=0)
    return float(off.mean()), float(off.std(ddof=1) / len(off) ** 0.5)


def mean_of(losses: Losses) -> float:
    """The mean loss over domains."""
    return float(np.mean([np.mean(values) for values in losses.values()]))


def table(results: Mapping[str, Losses], domains: tuple[str, ...]) -> list[str]:
    """Losses by domain, their mean, and its difference from linear with a paired error: inputs
    first, then all methods, the best first."""
    inputs = ["base alone", *(f"expert: {domain}" for domain in domains)]
    rows = [("input", label, results[label]) for label in inputs]
    merged = []
    for method in METHODS:
        tried = {s: results[_key(method, s)] for s in method.settings if _key(method, s) in results}
        if tried:
            best = min(tried, key=lambda setting: mean_of(tried[setting]))
            label = method.label + (f" ({best}, best of {len(tried)})" if len(tried) > 1 else "")
            merged.append((GROUPS[method.group], label, tried[best]))
    merged.sort(key=lambda row: mean_of(row[2]))
    lines = [
        f"| | whose | {' | '.join(domains)} | mean | against linear |",
        "|---|---|" + "---:|" * (len(domains) + 2),
    ]
    for whose, label, losses in [*rows, *merged]:
        off, error = against(losses, results["linear"], domains)
        cells = [f"{np.mean(losses[domain]):.4f}" for domain in domains]
        shown = "" if label == "linear" else f"{off:+.4f} ± {error:.4f}"
        name = f"**{label}**" if whose == "ours" else label
        cells.append(f"{mean_of(losses):.4f}")
        lines.append(f"| {name} | {whose} | {' | '.join(cells)} | {shown} |")
    return lines


def _key(method: Method, setting: str) -> str:
    return f"{method.label}, {setting}" if setting else method.label


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", type=click.Choice(list(BASES)), default="smollm2-135m", show_default=True)
@click.option("--domain", "domains", multiple=True, type=click.Choice(DOMAINS), default=DOMAINS[:3])
@click.option("--broken", "spoiled", is_flag=True, help="Merge a broken further model in.")
@click.option(
    "--method",
    "labels",
    multiple=True,
    type=click.Choice([method.label for method in METHODS]),
    help="Only these (repeatable), and what is kept of others.",
)
@click.option("--small", is_flag=True, help="Few methods and blocks.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@write_option
def main(
    base: str,
    domains: tuple[str, ...],
    spoiled: bool,
    labels: tuple[str, ...],
    small: bool,
    cache: Path,
    write: bool,
) -> None:
    transformers_logging.disable_progress_bar()
    if small and write:
        raise click.UsageError("--small is a look: the tables of docs are made without it.")
    origin = half(load_file(base_folder(base, cache) / "model.safetensors"))
    folders = [expert_folder(base, domain, cache) for domain in domains]
    experts = [half(load_file(folder / "model.safetensors")) for folder in folders]
    reader = Reader(base, domains, cache, SMALL_BLOCKS if small else BLOCKS)
    name = f"{base}-{len(domains)}{'-broken' if spoiled else ''}"
    kept = cache / f"results-{name}-{'-'.join(domains)}{'-small' if small else ''}.json"
    results = json.loads(kept.read_text()) if kept.is_file() else {}
    inputs = [*experts, broken(origin)] if spoiled else experts

    def tell(label: str, losses: Losses) -> None:
        results[label] = losses
        click.echo(f"{label}: {mean_of(losses):.4f}", err=True)
        kept.write_text(json.dumps(results))

    @once
    def moments() -> list[Weights]:
        return [grams(base, domain, cache) for domain in domains]

    for label, weights in [
        ("base alone", origin),
        *((f"expert: {d}", x) for d, x in zip(domains, experts, strict=True)),
    ]:
        if label not in results:
            tell(label, reader.losses(weights))
    for method in METHODS:
        if labels and method.label not in labels:
            continue
        takes = method.only in (None, len(inputs)) and not (spoiled and method.reads)
        for setting, merge in method.settings.items() if takes and small <= method.small else ():
            if (label := _key(method, setting)) not in results:
                tell(label, reader.losses(half(merge(origin, inputs, moments))))
    show(table(results, domains), "quality.md", f"quality-{name}", write=write)


if __name__ == "__main__":
    main()
