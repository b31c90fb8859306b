"""Broken copies of a model, as a merge might meet them: a real checkpoint, spoiled in one way.

    python benchmarks/broken.py noise ./examples/experts/german ./broken

Every tensor is spoiled, norms included; config and tokenizer stay as they are.
"""

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file

SCALE = 100.0
SEED = 1


def _noise(weight: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return weight + weight.square().mean().sqrt() * torch.randn(weight.shape, generator=random)


def _shuffled(weight: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return weight.flatten()[torch.randperm(weight.numel(), generator=random)].view(weight.shape)


def _flipped(weight: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return -weight


def _scaled(weight: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return weight * SCALE


KINDS: dict[str, tuple[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]]] = {
    "noise": ("Gaussian noise of the size of the weights added", _noise),
    "shuffled": ("the elements of each tensor in random order", _shuffled),
    "flipped": ("the sign of every weight flipped", _flipped),
    "scaled": (f"every weight times {SCALE:g}", _scaled),
}


def break_model(kind: str, source: str | Path, out: str | Path, seed: int = SEED) -> None:
    """Writes a broken copy of a model folder.

    Args:
        kind: a key of `KINDS`.
        source: folder of a model whose weights are in `*.safetensors`.
        out: folder for the copy; created if missing, files of the same names are replaced.
        seed: of the random kinds; each tensor has its own stream, by its name.
    """
    _, change = KINDS[kind]
    shutil.copytree(source, out, dirs_exist_ok=True)
    for path in sorted(Path(out).glob("*.safetensors")):
        broken = {}
        for name, weight in load_file(path).items():
            random = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
            broken[name] = change(weight.float(), random).to(weight.dtype).contiguous()
        save_file(broken, path, metadata={"format": "pt"})


@click.command(help="Writes a broken copy of the model in SOURCE to the folder OUT.")
@click.argument("kind", type=click.Choice(tuple(KINDS)))
@click.argument("source", type=click.Path(exists=True, file_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--seed", default=SEED, show_default=True)
def main(kind: str, source: str, out: str, seed: int) -> None:
    break_model(kind, source, out, seed)


if __name__ == "__main__":
    main()
