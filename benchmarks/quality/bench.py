"""Merges of the real experts, by loss on held-out text of their domains.

    python benchmarks/quality/bench.py --write                # all tables of docs/quality.md
    python benchmarks/quality/bench.py --base smollm2-135m -k 3 --whole
    python benchmarks/quality/bench.py --small -k 3 --base smollm2-135m     # a look: minutes

Trains what is missing (`train.py`), merges in memory by the methods of `methods.py`, rounds to
bfloat16 as `mergekit-yaml` would, and prints the mean loss (nats a token) with the errors of its
differences from `linear` and from recall, paired over blocks. Every row is kept in the cache, so
that a run goes on where it stopped, and says at the end what all of them took. Where a method has
several settings, the one that is best on the held-out text itself stands in the table, which no
user can know; with a broken model, where none helps, its first.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from itertools import islice, product
from pathlib import Path

import click
import numpy as np
import torch
from methods import METHODS, Merge, Method, Weights
from models import BASES, CACHE, DOMAINS, base_folder, texts_of
from reading import BLOCKS, Losses, Reader, blocks_of, half, mean_of
from safetensors.torch import load_file
from torch import Tensor
from train import expert_folder, experts_of, training_seconds
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kept import Kept
from pages import show, write_option

REAL = tuple(name for name, base in BASES.items() if base.packages)
SMALL_BLOCKS = 2
SEED = 5
MARKS = ("linear", "recall, base as anchor")  # what rows are compared with
GROUPS = ("ours", "mergekit's", "of papers")


def broken(base: Weights) -> Weights:
    """The base with noise of the size of its weights."""
    generator = torch.Generator().manual_seed(SEED)
    return {
        name: (x + x.float().square().mean().sqrt() * torch.randn(x.shape, generator=generator)).to(
            x.dtype
        )
        for name, x in base.items()
    }


def grams(base: str, domain: str, cache: Path) -> Weights:
    """Of an expert, X^T X of the inputs of each linear layer on its own training text."""
    folder = expert_folder(base, domain, cache)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[str, Tensor] = {}

    def listen(name: str) -> None:
        def hear(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2)
            found[name] = found.get(name, 0) + rows.T @ rows

        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hear)

    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            listen(f"model.{name}.weight")
    with torch.inference_mode():
        for block in blocks_of(base, texts_of(domain, cache)[0], cache, BLOCKS):
            model(input_ids=block[None], use_cache=False)
    return found


def against(losses: Losses, other: Losses, domains: tuple[str, ...]) -> str:
    """The mean difference from another row, and its error; a block of each domain is one
    observation. Nothing for the row itself."""
    if losses is other:
        return ""
    off = np.mean([np.subtract(losses[d], other[d]) for d in domains], axis=0)
    return f"{off.mean():+.4f} ± {off.std(ddof=1) / len(off) ** 0.5:.4f}"


def table(results: Mapping[str, Losses], domains: tuple[str, ...]) -> list[str]:
    """Losses by domain, their mean, and its differences from linear and from recall with paired
    errors: inputs first, then all methods, the best first."""
    inputs = ["base alone", *(f"expert: {domain}" for domain in domains)]
    rows = [("input", label, results[label]) for label in inputs]
    merged = []
    for method in METHODS:
        tried = {s: results[_key(method, s)] for s in method.settings if _key(method, s) in results}
        if tried:
            best = min(tried, key=lambda setting: mean_of(tried[setting]))
            of = f", best of {len(tried)}" if len(tried) > 1 else ""
            label = method.label + (f" ({best}{of})" if best else "")
            merged.append((GROUPS[method.group], label, tried[best]))
    merged.sort(key=lambda row: mean_of(row[2]))
    marks = [mark for mark in MARKS if mark in results]  # `--method` may have left one out
    lines = [
        f"| | whose | {' | '.join([*domains, 'mean', *(f'against {x}' for x in marks)])} |",
        "|---|---|" + "---:|" * (len(domains) + 1 + len(marks)),
    ]
    for whose, label, losses in [*rows, *merged]:
        cells = [f"{np.mean(losses[domain]):.4f}" for domain in domains]
        cells.append(f"{mean_of(losses):.4f}")
        cells += [against(losses, results[mark], domains) for mark in marks]
        name = f"**{label}**" if whose == "ours" else label
        lines.append(f"| {name} | {whose} | {' | '.join(cells)} |")
    return lines


def _key(method: Method, setting: str) -> str:
    return f"{method.label}, {setting}" if setting else method.label


@dataclass(frozen=True)
class Table:
    """What one table is about: so many experts of a base, with a broken further model or not."""

    base: str
    count: int
    spoiled: bool
    small: bool

    @property
    def name(self) -> str:
        return f"{self.base}-{self.count}{'-broken' if self.spoiled else ''}"

    @property
    def domains(self) -> tuple[str, ...]:
        return DOMAINS[: self.count]

    def file(self, cache: Path) -> Path:
        """The rows of merges so far."""
        return cache / f"results-{self.name}{self._suffix}.json"

    def inputs(self, cache: Path) -> Path:
        """What the base and the experts read so far, by model and domain, for all tables of a
        base."""
        return cache / f"inputs-{self.base}{self._suffix}.json"

    @property
    def _suffix(self) -> str:
        return "-small" if self.small else ""

    def takes(self, method: Method) -> bool:
        """Whether a method stands in it."""
        if self.small and not method.small:
            return False
        if (self.spoiled and not method.broken) or method.only not in (None, self.count):
            return False
        if self.base == REAL[0]:
            return method.counts or self.count < 5
        searched = len(method.settings) > 1
        return method.counts and method.only is None and not (self.spoiled and searched)

    def settings(self, method: Method) -> dict[str, Merge]:
        """Which of a method's settings it tries: with a broken model none helps, and the first
        stands for all."""
        return dict(islice(method.settings.items(), 1 if self.spoiled else None))


def fill(wanted: Table, methods: Sequence[Method], cache: Path) -> dict[str, Losses]:
    """The losses of all inputs and merges of a table, those that are kept read again."""
    base, domains, kept = wanted.base, wanted.domains, Kept(wanted.file(cache))
    spent = seconds_of(wanted.file(cache))
    origin = half(load_file(base_folder(base, cache) / "model.safetensors"))
    experts = [half(expert) for expert in experts_of(base, domains, cache)]
    reader = Reader(base, domains, cache, SMALL_BLOCKS if wanted.small else BLOCKS)
    inputs = [*experts, broken(origin)] if wanted.spoiled else experts

    @once
    def moments() -> list[Weights]:
        return [grams(base, domain, cache) for domain in domains]

    def read(label: str, make: Callable[[], Weights]) -> Losses:
        started = time.monotonic()
        weights = make()
        merged = time.monotonic()
        losses = reader.losses(half(weights))
        read = time.monotonic()
        spent.get(label, lambda: read - started)
        click.echo(
            f"{wanted.name}: {label}: {mean_of(losses):.4f} ({merged - started:.0f} s to merge, "
            f"{read - merged:.0f} s to read)",
            err=True,
        )
        return losses

    found = read_inputs(
        wanted,
        reader,
        {"base alone": origin}
        | dict(zip((f"expert: {domain}" for domain in domains), experts, strict=True)),
        cache,
    )
    for method in filter(wanted.takes, methods):
        last = math.inf
        for setting, merge in wanted.settings(method).items():
            label = _key(method, setting)
            losses = kept.get(label, partial(read, label, partial(merge, origin, inputs, moments)))
            last, before = mean_of(losses), last
            if method.climbing and last > before:
                break
    return found | kept.found


def read_inputs(
    wanted: Table, reader: Reader, inputs: Mapping[str, Weights], cache: Path
) -> dict[str, Losses]:
    """The losses of models that are merged, which are the same in all tables."""
    file = wanted.inputs(cache)
    kept, spent = Kept(file), seconds_of(file)
    found: dict[str, Losses] = {}
    for label, weights in inputs.items():
        missing = [d for d in wanted.domains if f"{label}, on {d}" not in kept.found]
        started = time.monotonic()
        losses = reader.losses(weights, missing) if missing else {}
        for domain, values in losses.items():
            kept.get(f"{label}, on {domain}", lambda values=values: values)
        if missing:
            took = time.monotonic() - started
            spent.get(f"{label}, on {', '.join(missing)}", lambda took=took: took)
        found[label] = {domain: kept.found[f"{label}, on {domain}"] for domain in wanted.domains}
    return found


def seconds_of(results: Path) -> Kept:
    """The seconds that each row of a file of results took, to merge and to read."""
    return Kept(results.with_suffix(".seconds.json"))


def minutes(tables: Sequence[Table], cache: Path) -> str:
    """What training and the rows of some tables took, in whichever runs."""
    files = {file for wanted in tables for file in (wanted.file(cache), wanted.inputs(cache))}
    rows = [spent for file in sorted(files) for spent in seconds_of(file).found.values()]
    bases = sorted({wanted.base for wanted in tables})
    training = [s for base in bases for s in training_seconds(base, cache).found.values()]
    return (
        f"the experts took {sum(training) / 60:.0f} minutes to train, {len(rows)} rows "
        f"{sum(rows) / 60:.0f} minutes to merge and to read"
    )


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--base", "bases", multiple=True, type=click.Choice(list(BASES)), default=REAL)
@click.option("-k", "counts", multiple=True, type=click.IntRange(2, 5), default=(2, 3, 5))
@click.option(
    "--broken/--whole", "spoiled", default=None, help="Only with, or without, a broken model."
)
@click.option(
    "--method",
    "labels",
    multiple=True,
    type=click.Choice([method.label for method in METHODS]),
    help="Only these (repeatable), and what is kept of others.",
)
@click.option("--small", is_flag=True, help="Few methods and blocks.")
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True)
@write_option
def main(
    bases: tuple[str, ...],
    counts: tuple[int, ...],
    spoiled: bool | None,
    labels: tuple[str, ...],
    small: bool,
    cache: Path,
    write: bool,
) -> None:
    transformers_logging.disable_progress_bar()
    if small and write:
        raise click.UsageError("--small is a look: the tables of docs are made without it.")
    methods = [method for method in METHODS if not labels or method.label in labels]
    tables: list[Table] = []
    for base, count in product(bases, counts):
        for broke in (False, True) if spoiled is None else (spoiled,):
            wanted = Table(base, count, broke, small)
            results = fill(wanted, methods, cache)
            tables.append(wanted)
            show(
                table(results, wanted.domains), "quality.md", f"quality-{wanted.name}", write=write
            )
    click.echo(minutes(tables, cache), err=True)


if __name__ == "__main__":
    main()
