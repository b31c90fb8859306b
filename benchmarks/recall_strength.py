"""How strong recall should be: held-out losses of merges of the example experts, by strength.

    python benchmarks/recall_strength.py           # about five minutes
    python benchmarks/recall_strength.py --write   # and into docs/recall.md

merges the first three, four and five experts with mergekit-yaml's own command (in one process,
since its start costs more than such a merge), without a base at multiples of
the closed form (K - 1) / (K - 2), and with the base as anchor, and prints the mean losses (nats
per byte) as Markdown; `linear` and the base alone stand beside them.
"""

import tempfile
from pathlib import Path

import click
import yaml
from held_out import DOMAINS, EXPERTS, mean_loss
from mergekit.scripts.run_yaml import main as mergekit_yaml
from pages import show, write_option
from rich.console import Console
from rich.progress import track
from robustness import METHODS
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


def merge(models: list[Path], method: dict[str, object], out: Path) -> None:
    config = {"models": [{"model": str(m)} for m in models], "dtype": "bfloat16", **method}
    out.with_suffix(".yml").write_text(yaml.safe_dump(config))
    arguments = [str(out.with_suffix(".yml")), str(out), "--quiet"]
    mergekit_yaml(arguments, standalone_mode=False)


@click.command(help=__doc__.split("\n\n")[0])
@write_option
def main(write: bool) -> None:
    transformers_logging.disable_progress_bar()
    rows = {"base alone": [mean_loss(BASE, DOMAINS[:count]) for count in COUNTS]}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "merge"
        for count in COUNTS:
            click.echo(f"K = {count} ...", err=True)
            models = [EXPERTS / domain for domain in DOMAINS[:count]]
            for label, method in track(methods(count).items(), f"K = {count}", console=console):
                merge(models, method, out)
                rows.setdefault(label, []).append(mean_loss(out, DOMAINS[:count]))
    lines = ["| | " + " | ".join(f"K = {count}" for count in COUNTS) + " |"]
    lines.append("|---|" + "---:|" * len(COUNTS))
    for label, losses in rows.items():
        lines.append(f"| {label} | " + " | ".join(f"{loss:.4f}" for loss in losses) + " |")
    show(lines, "recall.md", "recall-strength", write=write)


if __name__ == "__main__":
    main()
