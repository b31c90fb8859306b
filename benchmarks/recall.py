"""Recall beside mergekit's own methods, on three, four and five of the example experts.

    python benchmarks/recall.py        # three Markdown tables, about 15 minutes
    python benchmarks/recall.py -k 3   # the first of them

merges the first K experts with `mergekit-yaml`, alone and with a broken further model (the base
with noise of the size of its weights, see `broken.py`), and prints held-out losses (nats per
byte). Task arithmetic has the factor that is best on the held-out text itself, which no user can
know; the others have mergekit's defaults and, for ties, della and sce, half of the elements.
"""

import tempfile
from pathlib import Path

import click
from broken import break_model
from held_out import DOMAINS, EXPERTS, held_out_losses
from pages import show, write_option
from rich.console import Console
from rich.progress import track
from robustness import merge
from transformers.utils import logging as transformers_logging

BASE = EXPERTS / "base"
WITH_BASE = {"base_model": str(BASE)}
FACTORS = [n / 10 for n in range(2, 11)]


def _yoyo(**parameters: str) -> dict[str, object]:
    return {"merge_method": "yoyo_fusion", "parameters": parameters}


def _on_base(name: str, **parameters: float) -> dict[str, object]:
    return {**WITH_BASE, "merge_method": name, "parameters": parameters}


METHODS: dict[str, dict[str, object]] = {
    "linear": {"merge_method": "linear", "parameters": {"weight": 1.0}},
    "yoyo_fusion (`tukey`)": _yoyo(),
    "karcher": {"merge_method": "karcher"},
    "**recall**": _yoyo(consensus="recall"),
    "ties, density 0.5, base": _on_base("ties", weight=1.0, density=0.5),
    "della, density 0.5, base": _on_base("della", weight=1.0, density=0.5),
    "sce, top 0.5, base": _on_base("sce", select_topk=0.5),
    **{
        f"task_arithmetic, factor {factor:g}, base": _on_base("task_arithmetic", weight=factor)
        for factor in FACTORS
    },
    "**recall**, base as anchor": {**WITH_BASE, **_yoyo(consensus="recall", center="anchor")},
}


def table(domains: tuple[str, ...], folder: Path) -> str:
    """The Markdown table of the experts of these domains; `folder` is for the merges."""
    broken = folder / "broken"
    break_model("noise", BASE, broken)
    good = [EXPERTS / domain for domain in domains]
    losses = {
        "base alone": held_out_losses(BASE, domains),
        "each expert on its own domain": {
            domain: held_out_losses(EXPERTS / domain, (domain,))[domain] for domain in domains
        },
    }
    spoiled: dict[str, float] = {}
    methods = track(METHODS.items(), f"Merging {len(good)}", console=Console(stderr=True))
    for label, method in methods:
        for models, out in ((good, "good"), ([*good, broken], "spoiled")):
            merge(models, method, folder / out)
            found = held_out_losses(folder / out, domains)
            if out == "good":
                losses[label] = found
            else:
                spoiled[label] = _mean(found)

    scanned = [label for label in losses if label.startswith("task_arithmetic")]
    best = min(scanned, key=lambda label: _mean(losses[label]))
    lines = [
        f"| {len(good)} experts | {' | '.join(domains)} | mean | mean, and a broken model |",
        "|---|" + "---:|" * (len(domains) + 2),
    ]
    for label, found in losses.items():
        if label in scanned and label != best:
            continue
        cells = [*found.values(), _mean(found)]
        last = f"{spoiled[label]:.4f}" if label in spoiled else ""
        lines.append(f"| {label} | " + " | ".join(f"{x:.4f}" for x in cells) + f" | {last} |")
    return "\n".join(lines)


def _mean(losses: dict[str, float]) -> float:
    return sum(losses.values()) / len(losses)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("-k", "counts", multiple=True, type=click.IntRange(2, len(DOMAINS)))
@write_option
def main(counts: tuple[int, ...], write: bool) -> None:
    transformers_logging.disable_progress_bar()
    for count in counts or (3, 4, 5):
        with tempfile.TemporaryDirectory() as folder:
            click.echo(f"merging {count} experts by every method ...", err=True)
            measured = table(DOMAINS[:count], Path(folder))
            show(measured, "recall.md", f"recall-{count}", write=write)


if __name__ == "__main__":
    main()
