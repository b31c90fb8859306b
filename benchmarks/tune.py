"""`tune` put to the test: its choice from text that the models wrote, on text that they did not.

    python benchmarks/tune.py --write                            # the shipped experts, ten minutes
    python benchmarks/tune.py --experts DIR --held-out DIR --name NAME --write

For each merge the option is tuned from self-written text; then the given YAML, `linear`, the tuned
YAML and a scan of the option are merged by mergekit and read held-out text of the domains (mean
loss, nats a token). "best of the scan" is what no user can know. DIR of experts holds `base` and a
folder a domain, DIR of held-out text a NAME.txt a domain.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from held_out import EXPERTS, HELD_OUT
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from pages import show, write_option
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

import mergekit_yoyo.method  # noqa: F401
from mergekit_yoyo.text import Window, Writing, read_texts, token_windows
from mergekit_yoyo.tuning import Search, Texts, tune
from mergekit_yoyo.tuning.divergence import samples
from mergekit_yoyo.tuning.subjects import load_model

WINDOW = 256
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2)
STRENGTHS = (0.05, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Case:
    """A merge, the option of it that is tuned, and the values of the scan."""

    label: str
    method: dict[str, Any]
    option: str
    scan: Sequence[float]


def cases(base: Path) -> list[Case]:
    """The merges, each with a start that a user might have."""
    on_base = {"base_model": str(base)}
    recall = {"consensus": "recall"}
    return [
        Case(
            "recall",
            {"merge_method": "yoyo_fusion", "parameters": recall},
            "recall_strength",
            STRENGTHS,
        ),
        Case(
            "recall, base as anchor",
            {
                **on_base,
                "merge_method": "yoyo_fusion",
                "parameters": {**recall, "center": "anchor"},
            },
            "recall_strength",
            (*LEVELS, 1.5, 2.0),
        ),
        Case(
            "task_arithmetic, factor 1",
            {
                **on_base,
                "merge_method": "task_arithmetic",
                "parameters": {"weight": 1.0, "lambda": 1.0},
            },
            "lambda",
            LEVELS,
        ),
        Case(
            "ties, density 0.5",
            {
                **on_base,
                "merge_method": "ties",
                "parameters": {"weight": 1.0, "density": 0.5, "lambda": 1.0},
            },
            "lambda",
            (*LEVELS, 1.5, 2.0),
        ),
    ]


def merge(file: Path, folder: Path) -> None:
    """By mergekit."""
    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    run_merge(config, str(folder), MergeOptions(quiet=True, random_seed=0))


class Reader:
    """Held-out text of the domains, and the mean loss of a merge on it."""

    def __init__(self, folder: Path, domains: Sequence[str], tokenizer: Path, most: int) -> None:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
        texts = read_texts({domain: folder / f"{domain}.txt" for domain in domains})
        self._windows: dict[str, list[Window]] = {
            text.name: token_windows(text, loaded, WINDOW, most) for text in texts
        }

    def loss(self, data: dict[str, Any], folder: Path) -> float:
        """Of the merge that a YAML describes, in nats a token."""
        file = folder / "read.yml"
        file.write_text(yaml.safe_dump(data))
        with tempfile.TemporaryDirectory(dir=folder) as merged:
            merge(file, Path(merged))
            model = load_model(Path(merged), "cpu")
        means = [
            np.mean([sample.loss for sample in samples(model, windows, None)])
            for windows in self._windows.values()
        ]
        return float(np.mean(means))


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--experts", type=click.Path(path_type=Path), default=EXPERTS)
@click.option("--held-out", type=click.Path(path_type=Path), default=HELD_OUT)
@click.option("--domains", default="code,german,manual", help="Folders of experts, by commas.")
@click.option("--name", default="toys", help="What the experts are, for the table.")
@click.option("--samples", "count", default=64, type=int)
@click.option("--tokens", default=128, type=int)
@click.option("--windows", default=96, type=int, help="Of held-out text, a domain, at most.")
@write_option
def main(
    experts: Path,
    held_out: Path,
    domains: str,
    name: str,
    count: int,
    tokens: int,
    windows: int,
    write: bool,
) -> None:
    transformers_logging.disable_progress_bar()
    names = domains.split(",")
    models = [{"model": str(experts / domain)} for domain in names]
    reader = Reader(held_out, names, experts / names[0], windows)
    lines = [
        "| merge | option | given | linear | tuned from own text | best of the scan | tuned above "
        "the best | s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    common = {"models": models, "dtype": "bfloat16"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        linear = reader.loss(
            {**common, "merge_method": "linear", "parameters": {"weight": 1.0}}, folder
        )
        texts = Texts({}, folder / "texts", Writing(count, tokens), tokens, count)
        for case in cases(experts / "base"):
            file, out = folder / "merge.yml", folder / "tuned.yml"
            data = {**common, **case.method}
            file.write_text(yaml.safe_dump(data))
            started = time.perf_counter()
            how = Search(move=[case.option], candidates=20, beside=False, fresh=True)
            done = tune(file, out, merge, texts, how)
            seconds = time.perf_counter() - started
            scan = {}
            for value in case.scan:
                parameters = {**case.method["parameters"], case.option: value}
                scan[value] = reader.loss({**data, "parameters": parameters}, folder)
            best = min(scan, key=lambda value: scan[value])
            tuned = reader.loss(yaml.safe_load(out.read_text()), folder)
            given = reader.loss(data, folder)
            value = done.outcome.setting[case.option]
            lines.append(
                f"| {case.label} | `{case.option}` | {given:.4f} | {linear:.4f} | "
                f"{tuned:.4f} at {value} | {scan[best]:.4f} at {best:g} | "
                f"{tuned - scan[best]:+.4f} | {seconds:.0f} |"
            )
            click.echo(lines[-1], err=True)
    if name == "toys":
        show(lines, "tune.md", "tune-toys", write=write)
    else:
        show([f"{name}:", "", *lines], "tune.md", "tune-real", write=write)


if __name__ == "__main__":
    main()
