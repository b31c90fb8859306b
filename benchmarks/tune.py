"""`tune` put to the test: its choice from text that the models wrote, on text that they did not.

    python benchmarks/tune.py --write                            # the shipped experts, ten minutes
    python benchmarks/tune.py --experts DIR --held-out DIR --name NAME --write

For each merge the option is tuned twice: from text that the models wrote, and with `--text` from
the first half of the held-out text. Then the given YAML, `linear`, both tuned YAMLs and a scan of
the option are merged by mergekit and read the second half (mean loss over the domains, nats a
token). "best of the scan" is what no user can know. DIR of experts holds `base` and a folder a
domain, DIR of held-out text a NAME.txt a domain.
"""

import tempfile
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
LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.3)
STRENGTHS = (0.05, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


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
            (*LEVELS, 1.7),
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
            (*LEVELS, 1.7),
        ),
    ]


def merge(file: Path, folder: Path) -> None:
    """By mergekit."""
    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    run_merge(config, str(folder), MergeOptions(quiet=True, random_seed=0))


class Reader:
    """Held-out text of some files, and the mean loss of a merge on it."""

    def __init__(self, files: dict[str, Path], tokenizer: Path, most: int) -> None:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
        texts = read_texts(files)
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


def halved(held_out: Path, domains: Sequence[str], folder: Path) -> list[dict[str, Path]]:
    """The first and the second half of each domain's text, as files."""
    halves: list[dict[str, Path]] = [{}, {}]
    for domain in domains:
        text = (held_out / f"{domain}.txt").read_text(encoding="utf-8")
        middle = text.rfind("\n", 0, len(text) // 2)
        for number, part in enumerate((text[:middle], text[middle:])):
            halves[number][domain] = folder / f"{domain}-{number}.txt"
            halves[number][domain].write_text(part, encoding="utf-8")
    return halves


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--experts", type=click.Path(path_type=Path), default=EXPERTS)
@click.option("--held-out", type=click.Path(path_type=Path), default=HELD_OUT)
@click.option("--domains", default="code,german,manual", help="Folders of experts, by commas.")
@click.option("--name", default="toys", help="What the experts are, for the table.")
@click.option("--samples", "count", default=64, type=int)
@click.option("--tokens", default=128, type=int)
@click.option("--windows", default=48, type=int, help="Of held-out text, a domain, at most.")
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
    lines = [
        "| merge | option | given | linear | tuned, the models' own text | tuned, `--text` | "
        "best of the scan |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    common = {"models": models, "dtype": "bfloat16"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given_text, read_text = halved(held_out, names, folder)
        reader = Reader(read_text, experts / names[0], windows)
        linear = reader.loss(
            {**common, "merge_method": "linear", "parameters": {"weight": 1.0}}, folder
        )
        writing = Writing(count, tokens)
        sources = [
            Texts(files, folder / "texts", writing, tokens, count) for files in ({}, given_text)
        ]
        for case in cases(experts / "base"):
            file, out = folder / "merge.yml", folder / "tuned.yml"
            data = {**common, **case.method}
            file.write_text(yaml.safe_dump(data))
            cells = [f"{reader.loss(data, folder):.4f}", f"{linear:.4f}"]
            for texts in sources:
                how = Search(move=[case.option], candidates=20, beside=False, fresh=True)
                done = tune(file, out, merge, texts, how)
                loss = reader.loss(yaml.safe_load(out.read_text()), folder)
                cells.append(f"{loss:.4f} at {done.outcome.setting[case.option]}")
            scan = {}
            for value in case.scan:
                parameters = {**case.method["parameters"], case.option: value}
                scan[value] = reader.loss({**data, "parameters": parameters}, folder)
            best = min(scan, key=lambda value: scan[value])
            cells.append(f"{scan[best]:.4f} at {best:g}")
            lines.append(f"| {case.label} | `{case.option}` | {' | '.join(cells)} |")
            click.echo(lines[-1], err=True)
    if name == "toys":
        show(lines, "tune.md", "tune-toys", write=write)
    else:
        show([f"{name}:", "", *lines], "tune.md", "tune-real", write=write)


if __name__ == "__main__":
    main()
