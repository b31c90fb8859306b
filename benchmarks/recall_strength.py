"""How strong recall should be: held-out losses of merges of the example experts, by strength.

    python benchmarks/recall_strength.py   # about five minutes

merges the first three, four and five experts with `mergekit-yaml`, without a base at multiples of
the closed form (K - 1) / (K - 2), and with the base as anchor, and prints the mean losses (nats
per byte) as Markdown; `linear` and the base alone stand beside them.
"""

import tempfile
from pathlib import Path

import click
from held_out import DOMAINS, EXPERTS, mean_loss
from rich.console import Console
from rich.progress import track
from robustness import METHODS, merge
from transformers.utils import logging as transformers_logging

BASE = EXPERTS / "base"
COUNTS = (3, 4, 5)
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
ANCHORED_STRENGTHS = (0.3, 0.5, 0.7, 1.0, 1.3, 1.7)


def methods(count: int) -> dict[str, dict[str, object]]:
    """The merges of `count` experts, by the label of their row."""
    closed_form = (count - 1) / (count - 2)
    return {
        "linear": METHODS["linear"],
        **{
            f"recall, {factor:g} times the closed form": _recall(factor * closed_form)
            for factor in FACTORS
        },
        **{
            f"recall, base as anchor, {strength:g}": {
                "base_model": str(BASE),
                **_recall(strength, center="anchor"),
            }
            for strength in ANCHORED_STRENGTHS
        },
    }


def _recall(strength: float, **parameters: str) -> dict[str, object]:
    recall = {"consensus": "recall", "recall_strength": strength, **parameters}
    return {"merge_method": "yoyo_fusion", "parameters": recall}


@click.command(help=__doc__.split("\n\n")[0])
def main() -> None:
    transformers_logging.disable_progress_bar()
    rows = {"base alone": [mean_loss(BASE, DOMAINS[:count]) for count in COUNTS]}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "merge"
        for count in COUNTS:
            models = [EXPERTS / domain for domain in DOMAINS[:count]]
            for label, method in track(methods(count).items(), f"K = {count}", console=console):
                merge(models, method, out)
                rows.setdefault(label, []).append(mean_loss(out, DOMAINS[:count]))
    click.echo("| | " + " | ".join(f"K = {count}" for count in COUNTS) + " |")
    click.echo("|---|" + "---:|" * len(COUNTS))
    for label, losses in rows.items():
        click.echo(f"| {label} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")


if __name__ == "__main__":
    main()
