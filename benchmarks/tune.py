"""`tune` put to the test: its choice from text that the models wrote, on text that they did not.

    python benchmarks/tune.py --write                            # the shipped experts, ten minutes
    python benchmarks/tune.py --base smollm2-135m --samples 16 --tokens 96 --windows 6 --write

For each merge the option is tuned twice: from text that the models wrote, and with `--text` from
the first half of the held-out text. Then the given YAML, `linear`, both tuned YAMLs and a scan of
the option are merged by mergekit and read the second half (mean loss over the domains, nats a
token). "best of the scan" is what no user can know. The real experts are those of
`benchmarks/quality/train.py`; finished rows stay in their cache.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from held_out import QUICKSTART
from kept import Kept
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

sys.path.insert(0, str(Path(__file__).resolve().parent / "quality"))
from models import BASES, CACHE, DOMAINS, TOYS, base_folder, held_out
from train import expert_folder

WINDOW = 256
LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0, 1.3)
STRENGTHS = (0.05, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)

Cell = tuple[Any, float]  # a value of the option, and the loss


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
    recall = {"consensus": "recall", "ridge": 10.0}  # its numbers are the defaults of then
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
                "parameters": {**recall, "center": "anchor", "recall_prior": 2 / 3},
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


def halved(texts: Mapping[str, str], folder: Path) -> list[dict[str, Path]]:
    """The first and the second half of each domain's text, as files."""
    halves: list[dict[str, Path]] = [{}, {}]
    for domain, text in texts.items():
        middle = text.rfind("\n", 0, len(text) // 2)
        for number, part in enumerate((text[:middle], text[middle:])):
            halves[number][domain] = folder / f"{domain}-{number}.txt"
            halves[number][domain].write_text(part, encoding="utf-8")
    return halves


@dataclass(frozen=True)
class Trial:
    """The experts of a base, and what their merges read. sources: of text to tune by, by name."""

    models: Sequence[Path]
    reader: Reader
    kept: Kept
    sources: Mapping[str, Texts]
    folder: Path

    def _yaml(self, method: Mapping[str, Any]) -> dict[str, Any]:
        return {"models": [{"model": str(m)} for m in self.models], "dtype": "bfloat16", **method}

    def _at(self, case: Case, value: float) -> Cell:
        parameters = {**case.method["parameters"], case.option: value}
        return value, self._loss({**case.method, "parameters": parameters})

    def _loss(self, method: Mapping[str, Any]) -> float:
        return self.reader.loss(self._yaml(method), self.folder)

    def _tuned(self, case: Case, texts: Texts) -> Cell:
        file, out = self.folder / "merge.yml", self.folder / "tuned.yml"
        file.write_text(yaml.safe_dump(self._yaml(case.method)))
        how = Search(move=[case.option], candidates=20, beside=False, fresh=True)
        value = tune(file, out, merge, texts, how).outcome.setting[case.option]
        return value, self.reader.loss(yaml.safe_load(out.read_text()), self.folder)

    def _cell(self, label: str, make: Callable[[], Cell]) -> Cell:
        """The value of the option and the loss."""
        value, loss = self.kept.get(label, make)
        click.echo(f"{label}: {loss:.4f} at {value}", err=True)
        return value, loss

    def row(self, case: Case) -> str:
        """A line of the table."""
        average = {"merge_method": "linear", "parameters": {"weight": 1.0}}
        _, linear = self._cell("linear", lambda: (None, self._loss(average)))
        _, given = self._cell(f"{case.label}: given", lambda: (None, self._loss(case.method)))
        cells = [f"{given:.4f}", f"{linear:.4f}"]
        for name, texts in self.sources.items():
            make = partial(self._tuned, case, texts)
            value, loss = self._cell(f"{case.label}: tuned, {name}", make)
            cells.append(f"{loss:.4f} at {value}")
        scan = [self._cell(f"{case.label}: {v:g}", partial(self._at, case, v)) for v in case.scan]
        value, loss = min(scan, key=lambda cell: cell[1])
        cells.append(f"{loss:.4f} at {value:g}")
        return f"| {case.label} | `{case.option}` | {' | '.join(cells)} |"


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", type=click.Choice(list(BASES)), default=TOYS, show_default=True)
@click.option("--samples", "count", default=64, type=int)
@click.option("--tokens", default=128, type=int)
@click.option("--windows", default=48, type=int, help="Of held-out text, a domain, at most.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@write_option
def main(base: str, count: int, tokens: int, windows: int, cache: Path, write: bool) -> None:
    transformers_logging.disable_progress_bar()
    domains = QUICKSTART if base == TOYS else DOMAINS[:3]
    models = [expert_folder(base, domain, cache) for domain in domains]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = {domain: held_out(base, domain, cache) for domain in domains}
        given, read = halved(texts, folder)
        writing, kept = Writing(count, tokens), cache / base
        trial = Trial(
            models,
            Reader(read, models[0], windows),
            Kept(kept / f"tune-{count}-{tokens}-{windows}.json"),
            {
                name: Texts(files, kept / "tune-texts", writing, tokens, count)
                for name, files in (("own", {}), ("given", given))
            },
            folder,
        )
        lines = [
            "| merge | option | given | linear | tuned, the models' own text | tuned, `--text` | "
            "best of the scan |",
            "|---|---|---:|---:|---:|---:|---:|",
            *map(trial.row, cases(base_folder(base, cache))),
        ]
    show(lines, "tune.md", f"tune-{base}", write=write)


if __name__ == "__main__":
    main()
