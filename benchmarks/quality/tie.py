"""Without a base: "this model moved by t", or "the others moved by -t"? What could tell.

    python benchmarks/quality/tie.py --write                 # SmolLM2-135M's experts, two minutes

Of three experts, the leading singular directions of each residual from their mean, in every linear
layer: how often it was the others who moved along them (the base is known here), and how often the
one evidence that distinguishes the two says who: fine-tuning lets weights grow more often than
shrink, so whoever is larger along the direction is said to have moved.
"""

import sys
from pathlib import Path

import click
import torch
from models import BASES, CACHE, DOMAINS, base_folder, is_linear
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor
from torch.linalg import svd
from train import experts_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pages import show, write_option

LEADING = 16  # directions of a residual
COUNT = 3


def votes(origin: Tensor, taus: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of the leading directions of model k's residual, [directions]: whether the others moved
    further along them than k, and whether k is the larger there. taus: [K, out, in], float64."""
    mean = taus.mean(0)
    left, _, right = svd(taus[k] - mean, full_matrices=False)
    left, right = left[:, :LEADING], right[:LEADING].mT
    others = (taus.sum(0) - taus[k]) / (len(taus) - 1)
    by_others = _along(others, left, right).abs() > _along(taus[k], left, right).abs()
    return by_others, _along(origin + mean, left, right) > 0


def _along(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """u^T M v of each pair of directions."""
    return (left * (matrix @ right)).sum(0)


def _cosines(origin: Tensor, taus: Tensor) -> tuple[list[float], list[float]]:
    """Between the moves and the base, and between two moves."""
    unit = torch.nn.functional.normalize(taus.flatten(1))
    pairs = torch.triu_indices(len(taus), len(taus), 1)
    toward = unit @ torch.nn.functional.normalize(origin.flatten(), dim=0)
    return toward.tolist(), (unit @ unit.mT)[*pairs].tolist()


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", type=click.Choice(list(BASES)), default="smollm2-135m", show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@write_option
def main(base: str, cache: Path, write: bool) -> None:
    origin = load_file(base_folder(base, cache) / "model.safetensors")
    experts = experts_of(base, DOMAINS[:COUNT], cache)
    moved, larger, toward, between = [], [], [], []
    layers = [name for name, x in origin.items() if is_linear(name, x)]
    for name in track(layers, "layers"):
        before = origin[name].double()
        taus = torch.stack([x[name].double() - before for x in experts])
        for k in range(COUNT):
            by_others, is_larger = votes(before, taus, k)
            moved.append(by_others)
            larger.append(is_larger)
        along, across = _cosines(before, taus)
        toward += along
        between += across
    by_others, by_k = torch.cat(moved), ~torch.cat(moved)
    said = torch.cat(larger)  # that k moved
    lines = [
        "| of the leading directions of the residuals | |",
        "|---|---:|",
        f"| looked at | {len(said):,} |",
        f"| along which the others moved further than the model itself | {_share(by_others)} |",
        f"| of these, told by size | {_share(~said[by_others])} |",
        f"| of the rest, told by size | {_share(said[by_k])} |",
        f"| mean cosine of a move with the base | {torch.tensor(toward).mean():.4f} |",
        f"| mean cosine of two moves | {torch.tensor(between).mean():.4f} |",
    ]
    show(lines, "recall.md", f"tie-{base}", write=write)


def _share(found: Tensor) -> str:
    return f"{found.double().mean():.1%}"


if __name__ == "__main__":
    main()
