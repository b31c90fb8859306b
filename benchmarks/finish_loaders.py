"""What plain mlx-lm makes of a merge before and after `mergekit-yoyo finish`.

    python benchmarks/finish_loaders.py        (needs the extras `mlx` and `test`)

For each family: a tiny random checkpoint as published (original layout, older config spelling),
mergekit's passthrough of it, then `finish`. Printed is the largest difference of mlx-lm's logits
from those of transformers on the same folder, in float32, as a share of the largest logit.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import click
import mlx.core as mx
import torch
from finish_fixtures import FAMILIES, passthrough, run_mergekit, write_checkpoint
from mlx_lm.utils import load_model
from pages import show, write_option
from transformers import AutoModelForCausalLM

from mergekit_yoyo.finish import finish, plan_finish

TOKENS = list(range(3, 40))


def difference(folder: Path) -> str:
    """mlx-lm against transformers on one folder, or the error that mlx-lm stops with."""
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = model(torch.tensor([TOKENS])).logits
    try:
        loaded, _ = load_model(folder)
    except (TypeError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    loaded.set_dtype(mx.float32)
    got = torch.tensor(loaded(mx.array([TOKENS])).tolist())
    return f"{((got - expected).abs().max() / expected.abs().max()).item():.1e}"


@click.command(help=__doc__.split("\n\n")[0])
@write_option
def main(write: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, jobs = Path(name), {}
        for family, (_, _, values, _) in FAMILIES.items():
            donor = write_checkpoint(root / family, family)
            layers = values.get("num_hidden_layers", 2)
            jobs[root / f"{family}-merged"] = passthrough(donor, layers)
        run_mergekit(jobs, root)
        table = ["| family | as mergekit wrote it | finished |", "|---|---|---|"]
        for family, merged in zip(FAMILIES, jobs, strict=True):
            finished = finish(plan_finish(merged), output=root / f"{family}-finished")
            click.echo(f"{family} ...", err=True)
            table.append(f"| {family} | {difference(merged)} | {difference(finished)} |")
    show(table, "finish.md", "finish-loaders", write=write)


if __name__ == "__main__":
    main()
