"""What writing a merge in bfloat16 costs, by kind of tensor, and what other roundings would save.

    python benchmarks/quality/rounding.py                      # SmolLM2-135M: code, german, headers
    python benchmarks/quality/rounding.py --write              # into docs/quality.md

The linear merge of the experts in float32 is read on held-out text, then with some or all of its
tensors in bfloat16: rounded to nearest, by chance (stochastic, the mean of three seeds), and to
nearest with the error of each column made up for by the columns to come, by the second moments of
inputs that recall finds in the residuals (`feedback`). The difference from float32 stands with its
error, paired over blocks.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from models import BASES, CACHE, DOMAINS, EMBEDDING, base_folder, is_linear
from reading import BLOCKS, Losses, Reader, Weights, half, mean_of
from safetensors.torch import load_file
from torch import Tensor
from train import experts_of
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pages import show, write_option

SEEDS = 3
RIDGE = 0.1  # beside moments whose mean eigenvalue is 1
KINDS: dict[str, Callable[[str], bool]] = {
    "embedding and head": lambda name: EMBEDDING in name or "lm_head" in name,
    "attention": lambda name: "self_attn" in name,
    "mlp": lambda name: ".mlp." in name,
    "norms": lambda name: "norm" in name,
}


def nearest(weight: Tensor) -> Tensor:
    """In bfloat16's values."""
    return weight.to(torch.bfloat16).float()


def stochastic(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Up or down by chance, so that the mean is right: 16 random bits are added below bfloat16."""
    bits = weight.view(torch.int32)
    noise = torch.randint(2**16, weight.shape, generator=generator, dtype=torch.int32)
    return ((bits + noise) & ~0xFFFF).view(torch.float32)


def feedback(weight: Tensor, residuals: Tensor) -> Tensor:
    """Column by column, as GPTQ (2210.17323) does it; residuals: [K, out, in], from the mean."""
    moments = (residuals.mT @ residuals / residuals.square().sum((1, 2), keepdim=True)).mean(0)
    moments = moments.double() * len(moments) + RIDGE * torch.eye(len(moments)).double()
    upper = torch.linalg.cholesky(torch.linalg.inv(moments), upper=True).float()
    left, rounded = weight.clone(), torch.empty_like(weight)
    for k in range(weight.shape[1]):
        rounded[:, k] = nearest(left[:, k])
        error = (left[:, k] - rounded[:, k]) / upper[k, k]
        left[:, k + 1 :] -= error[:, None] * upper[k, k + 1 :]
    return rounded


def fed(merge: Weights, experts: list[Weights]) -> Weights:
    """All of a merge in bfloat16's values, linear layers with feedback."""
    found = {}
    for name, weight in merge.items():
        if is_linear(name, weight):
            residuals = torch.stack([x[name].float() - weight for x in experts])
            found[name] = feedback(weight, residuals)
        else:
            found[name] = nearest(weight)
    return found


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", type=click.Choice(list(BASES)), default="smollm2-135m", show_default=True)
@click.option("--domain", "domains", multiple=True, type=click.Choice(DOMAINS), default=DOMAINS[:3])
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@write_option
def main(base: str, domains: tuple[str, ...], cache: Path, write: bool) -> None:
    transformers_logging.disable_progress_bar()
    names = load_file(base_folder(base, cache) / "model.safetensors").keys()
    experts = [half(expert) for expert in experts_of(base, domains, cache)]
    merge = {name: torch.stack([x[name].float() for x in experts]).mean(0) for name in names}
    reader = Reader(base, domains, cache, BLOCKS)
    whole = reader.losses(merge)
    lines = [
        "| in bfloat16 | rounding | loss | against float32 |",
        "|---|---|---:|---:|",
        f"| nothing | | {mean_of(whole):.5f} | |",
    ]

    def tell(what: str, how: str, *made: Losses) -> None:
        off = np.mean([[np.subtract(m[d], whole[d]) for d in domains] for m in made], axis=(0, 1))
        error = off.std(ddof=1) / len(off) ** 0.5
        loss = np.mean([mean_of(m) for m in made])
        lines.append(f"| {what} | {how} | {loss:.5f} | {off.mean():+.5f} ± {error:.5f} |")
        click.echo(lines[-1], err=True)

    for kind, fits in KINDS.items():
        part = {name: nearest(x) if fits(name) else x for name, x in merge.items()}
        tell(kind, "nearest", reader.losses(part))
    tell("all", "nearest", reader.losses({name: nearest(x) for name, x in merge.items()}))
    drawn = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        drawn.append(reader.losses({name: stochastic(x, generator) for name, x in merge.items()}))
    tell("all", f"stochastic, {SEEDS} seeds", *drawn)
    tell("all", "feedback", reader.losses(fed(merge, experts)))
    show(lines, "quality.md", f"quality-rounding-{base}", write=write)


if __name__ == "__main__":
    main()
