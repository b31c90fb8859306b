"""What plain mlx-lm computes from models saved by transformers: right, wrong, or an error.

    python benchmarks/mlx_plain.py           # --write puts the count into docs/mlx.md

for every config that our export computes rightly (`tests/mlx_families.py`): float32 logits of
`mlx_lm.utils.load_model` on the folder as transformers saved it, against transformers.
"""

import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import click
import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from pages import show, write_option

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from mlx_families import RIGHT, tiny_model

TOLERANCE = 1e-3  # of the standard deviation of transformers' logits


def outcome(name: str) -> str:
    """`right`, `wrong` with the difference, or `error` with its first line."""
    tokens = torch.randint(0, 128, (1, 40), generator=torch.Generator().manual_seed(3))
    with tempfile.TemporaryDirectory() as folder:
        reference = tiny_model(RIGHT[name], Path(folder), original_layout=True)
        # longrope: mlx-lm has the factors of long contexts only, so compare there.
        start = 128 if "longrope" in name else 0
        places = {"position_ids": torch.arange(40)[None] + start} if start else {}
        with torch.no_grad():
            expected = reference(tokens, use_cache=False, **places).logits[0].numpy()
        try:
            model, _ = load_model(Path(folder))
            actual = np.array(model(mx.array(tokens.numpy()))[0])
        except Exception as error:
            return f"error: {str(error).splitlines()[0][:80]}"
    difference = np.abs(actual - expected).max() / expected.std()
    return "right" if difference <= TOLERANCE else f"wrong: {difference:.1e}"


@click.command(help="Counts the configs of the parity matrix that plain mlx-lm computes rightly.")
@write_option
def main(write: bool) -> None:
    counts: Counter[str] = Counter()
    for name in RIGHT:
        found = outcome(name)
        counts[found.partition(":")[0]] += 1
        click.echo(f"{name:24} {found}", err=True)
    line = (
        f"Of {len(RIGHT)} configs of tiny models, saved by transformers {version('transformers')}, "
        f"plain mlx-lm {version('mlx-lm')} computes {counts['right']} rightly and "
        f"{counts['wrong']} silently wrongly, and stops at {counts['error']}."
    )
    show(line, "mlx.md", "mlx-plain", write=write)


if __name__ == "__main__":
    main()
