"""What a broken fourth model does to a merge of three good ones.

    python benchmarks/robustness.py

merges the quickstart's experts with `mergekit-yaml`, alone and with a broken copy of the base
as a fourth model, and prints the merges' mean held-out losses (nats per byte) as the Markdown
table of the README.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import click
import yaml
from broken import KINDS, break_model
from held_out import EXPERTS, QUICKSTART, mean_loss
from pages import show, write_option
from rich.console import Console
from rich.progress import track
from transformers.utils import logging as transformers_logging

METHODS: dict[str, dict[str, object]] = {
    "linear": {"merge_method": "linear", "parameters": {"weight": 1.0}},
    "yoyo_fusion, rescale: median": {
        "merge_method": "yoyo_fusion",
        "parameters": {"rescale": "median"},
    },
    "yoyo_fusion, rescale: mean": {
        "merge_method": "yoyo_fusion",
        "parameters": {"rescale": "mean"},
    },
}


def merge(models: list[Path], method: dict[str, object], out: Path) -> None:
    """Merges model folders in a `mergekit-yaml` process of its own.

    Raises:
        RuntimeError: the process failed; the text is the end of its output.
    """
    config = {"models": [{"model": str(m)} for m in models], "dtype": "bfloat16", **method}
    recipe = out.with_suffix(".yml")
    recipe.write_text(yaml.safe_dump(config))
    process = subprocess.run(
        ["mergekit-yaml", str(recipe), str(out), "--quiet"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if process.returncode:
        raise RuntimeError(f"mergekit-yaml {recipe}: {process.stderr[-2000:]}")


def _cell(loss: float, good_loss: float) -> str:
    ratio = loss / good_loss
    return f"{loss:.4f} ({ratio - 1:+.1%})" if ratio < 10 else f"{loss:,.0f} (x {ratio:,.0f})"


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--broken-from", default="base", show_default=True, help="The expert to break.")
@write_option
def main(broken_from: str, write: bool) -> None:
    transformers_logging.disable_progress_bar()
    good = [EXPERTS / name for name in QUICKSTART]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = {"three good models": good}
        for kind, (meaning, _) in KINDS.items():
            break_model(kind, EXPERTS / broken_from, folder / kind)
            inputs[f"and {kind}: {meaning}"] = [*good, folder / kind]
        losses: dict[str, list[float]] = {label: [] for label in inputs}
        runs = [(label, key) for label in inputs for key in METHODS]
        console = Console(stderr=True)
        for i, (label, key) in enumerate(track(runs, "Merging", console=console)):
            merge(inputs[label], METHODS[key], folder / f"merge-{i}")
            losses[label].append(mean_loss(folder / f"merge-{i}"))
    table = [f"| models merged | {' | '.join(METHODS)} |", "|---|" + "---:|" * len(METHODS)]
    first = next(iter(losses.values()))
    for label, row in losses.items():
        cells = (
            [f"{loss:.4f}" for loss in row]
            if row is first
            else [_cell(loss, good_loss) for loss, good_loss in zip(row, first, strict=True)]
        )
        table.append(f"| {label} | " + " | ".join(cells) + " |")
    show(table, "numbers.md", "robustness", write=write)


if __name__ == "__main__":
    main()
