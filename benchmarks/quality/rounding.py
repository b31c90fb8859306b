"""What writing a merge in bfloat16 costs, by kind of tensor, and what other roundings would save.

    python benchmarks/quality/rounding.py                      # SmolLM2-135M: code, german, headers
    python benchmarks/quality/rounding.py --write              # into docs/quality.md

The linear merge of the experts in float32 is read on held-out text, then with some or all of its
tensors in bfloat16: rounded to nearest, by chance (as `rounding: stochastic` does, the mean of
three draws), and to nearest with the error of each column made up for by the columns to come, by
the second moments of inputs that recall finds in the residuals (`feedback`). Then recall around the
base, to nearest and by chance. The difference from float32 stands with its error, paired over
blocks.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from methods import ours
from models import BASES, CACHE, DOMAINS, EMBEDDING, base_folder, is_linear
from reading import BLOCKS, Losses, Reader, Weights, half, mean_of
from safetensors.torch import load_file
from torch import Tensor
from train import experts_of
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pages import show, write_option

from mergekit_yoyo.algorithm.rounding import Destination, Rounding

DRAWS = 3
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


def stochastic(merge: Weights, draw: int) -> Weights:
    """All of a merge as the option rounds it. draw: which; a merge has but one."""
    found = {}
    for name, weight in merge.items():
        found[name] = torch.empty_like(weight, dtype=torch.bfloat16)
        out = Destination.of(found[name][None], "stochastic", f"{name}, draw {draw}")
        Rounding(out).write((slice(None),), weight[None])
    return found


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
    origin = half(load_file(base_folder(base, cache) / "model.safetensors"))
    names = origin.keys()
    experts = [half(expert) for expert in experts_of(base, domains, cache)]
    merge = {name: torch.stack([x[name].float() for x in experts]).mean(0) for name in names}
    reader = Reader(base, domains, cache, BLOCKS)
    lines = [
        "| merge | in bfloat16 | rounding | loss | against float32 |",
        "|---|---|---|---:|---:|",
    ]

    def tell(what: str, how: str, *made: Losses) -> None:
        loss = np.mean([mean_of(m) for m in made])
        against = ""
        if how:
            off = np.mean([[np.subtract(m[d], whole[d]) for d in domains] for m in made], (0, 1))
            against = f"{off.mean():+.5f} ± {off.std(ddof=1) / len(off) ** 0.5:.5f}"
        lines.append(f"| {method} | {what} | {how} | {loss:.5f} | {against} |")
        click.echo(lines[-1], err=True)

    def by_chance(merge: Weights) -> list[Losses]:
        return [reader.losses(stochastic(merge, draw)) for draw in range(DRAWS)]

    method, whole = "linear", reader.losses(merge)
    tell("nothing", "", whole)
    for kind, fits in KINDS.items():
        part = {name: nearest(x) if fits(name) else x for name, x in merge.items()}
        tell(kind, "nearest", reader.losses(part))
    tell("all", "nearest", reader.losses(half(merge)))
    tell("all", f"stochastic, {DRAWS} draws", *by_chance(merge))
    tell("all", "feedback", reader.losses(fed(merge, experts)))

    inputs = [{name: x[name].float() for name in names} for x in (origin, *experts)]
    merge = ours(anchored=True, consensus="recall")(inputs[0], inputs[1:], list)
    method, whole = "recall, base as anchor", reader.losses(merge)
    tell("nothing", "", whole)
    tell("all", "nearest", reader.losses(half(merge)))
    tell("all", f"stochastic, {DRAWS} draws", *by_chance(merge))
    show(lines, "quality.md", f"quality-rounding-{base}", write=write)


if __name__ == "__main__":
    main()
