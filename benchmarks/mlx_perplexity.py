"""Perplexity of quantized MLX exports on held-out text, beside the bfloat16 one, as a table.

    mergekit-yaml examples/quickstart.yml ./merged
    python benchmarks/mlx_perplexity.py ./merged

exports the model once per recipe, loads each folder with mlx-lm, and reads the text in
`examples/held_out/` that belongs to the merged experts: of each domain as many blocks as --blocks
says, evenly spread (mlx is slow on CPUs). Perplexity is per token (here a byte), the exponential of
the mean loss over the domains; drift is what the export itself reports.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
from held_out import BLOCK, HELD_OUT, QUICKSTART
from pages import show, write_option

from mergekit_yoyo.mlx import Export, export_model

RECIPES = ["bf16", "q4", "qx64", "qx64-hi", "q6", "qx86", "qx86-hi", "qx86x-hi", "q8", "mxfp4"]


def perplexity(folder: Path, count: int, domains: Sequence[str] = QUICKSTART) -> float:
    """Perplexity per token of an mlx model on `count` blocks of 256 tokens of each domain, each
    block on its own after the beginning-of-text token; the domains count alike."""
    model, tokenizer = mlx_lm.load(str(folder))
    losses = []
    for domain in domains:
        text = (HELD_OUT / f"{domain}.txt").read_text(encoding="utf-8")
        ids = mx.array(tokenizer.encode(text, add_special_tokens=False, verbose=False))
        blocks = ids[: ids.size // BLOCK * BLOCK].reshape(-1, BLOCK)
        blocks = blocks[:: max(1, len(blocks) // count)][:count]
        first = mx.full((len(blocks), 1), tokenizer.bos_token_id, dtype=blocks.dtype)
        inputs = mx.concatenate([first, blocks[:, :-1]], axis=1)
        logits = mx.concatenate([model(block[None]).astype(mx.float32) for block in inputs])
        losses.append(nn.losses.cross_entropy(logits, blocks, reduction="mean").item())
    return math.exp(sum(losses) / len(losses))


def measure(source: Path, count: int) -> list[tuple[Export, float]]:
    """An export and its perplexity for each recipe."""
    with tempfile.TemporaryDirectory() as scratch:
        measured = []
        for name in RECIPES:
            click.echo(f"{name}: export, perplexity ...", err=True)
            export = export_model(source, Path(scratch) / name, name)
            measured.append((export, perplexity(export.folder, count)))
        return measured


@click.command(help="Prints a table of perplexities of the model's exports.")
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--blocks", default=12, show_default=True, help="Blocks of 256 bytes per domain.")
@write_option
def main(source: Path, blocks: int, write: bool) -> None:
    measured = measure(source, blocks)
    reference = measured[0][1]
    table = [
        "| recipe | bits per weight | perplexity | against bf16 | KL | top-1 agreement |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for export, value in measured:
        assert export.verification is not None
        drift = export.verification.drift
        table.append(
            f"| {export.plan.recipe.name} | {export.plan.bits_per_weight:.2f} | {value:.4f} "
            f"| {value / reference - 1:+.2%} | {drift.kl:.1e} | {drift.top1_agreement:.1%} |"
        )
    show(table, "mlx.md", "mlx-perplexity", write=write)


if __name__ == "__main__":
    main()
