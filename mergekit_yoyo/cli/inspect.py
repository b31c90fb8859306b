"""`mergekit-yoyo inspect`: look at a merge before it is run."""

import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from mergekit_yoyo.inspection import Inspection, Level, Reading

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_BLOCKS = "▁▂▃▄▅▆▇█"
_COLUMNS = 48  # of the row of layers, at most


@click.command(name="inspect")
@click.argument("merge_yaml", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Stop before the weights; download only small files.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Where the merge will be written: its disk is asked for space.  [default: here]",
)
def command(merge_yaml: Path, quick: bool, output: Path) -> None:
    """Look at the merge of MERGE_YAML before it is run. Nothing is written.

    The exit status is 1 if mergekit-yaml would fail or the merge would not be what the file says,
    0 if there are only warnings, and 2 if the file cannot be read.
    """
    err = Console(stderr=True)
    with err.status("Loading mergekit"):
        from mergekit_yoyo.inspection import inspect

    columns = [
        TextColumn("Reading weights"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("tensors", total=None, visible=False)
        seen = inspect(
            merge_yaml,
            quick=quick,
            output=output,
            progress=lambda done, total: bar.update(
                task, completed=done, total=total, visible=True
            ),
        )
    # A pipe has no width: there, each remark is one line.
    piped = not sys.stdout.isatty()
    out = Console(markup=False, highlight=False, soft_wrap=piped, width=100 if piped else None)
    show(seen, merge_yaml, out)
    raise SystemExit(1 if seen.failed else 0)


def show(seen: "Inspection", file: Path, out: Console) -> None:
    """Print an inspection: the models, what is wrong, the distances, and last the verdict."""
    config = seen.merge_yaml.config
    dtype = config.out_dtype or config.dtype
    out.print(f"{file}: {seen.merge_yaml.method}{f' in {dtype}' if dtype else ''}")
    for label, item in zip(_labels(len(seen.inputs)), seen.inputs, strict=True):
        out.print(f"  {label}  {item}: {item.summary}")
    levels: tuple[Level, ...] = ("error", "warning", "note")
    for level in levels:
        for text in seen.of_level(level):
            out.print(Text.assemble((level, _STYLES[level]), ": ", text))
    if seen.reading is not None and seen.reading.tensors:
        _show_distances(seen, seen.reading, out)
    out.print(f"{file}: {_verdict(seen)}", style="bold")


def _verdict(seen: "Inspection") -> str:
    errors, warnings = len(seen.of_level("error")), len(seen.of_level("warning"))
    counted = " and ".join(
        f"{count} {word}{'s' if count > 1 else ''}"
        for count, word in [(errors, "error"), (warnings, "warning")]
        if count
    )
    left = "" if seen.reading else "; the weights were not read"
    if errors:
        return f"{counted}: the merge would fail, or not be what the file says{left}"
    if warnings:
        return f"{counted}: the merge would work; look at the warnings first{left}"
    return f"fine: nothing is wrong{left}"


def _show_distances(seen: "Inspection", reading: "Reading", out: Console) -> None:
    from mergekit_yoyo.inspection.distances import (
        grouped,
        mean_recalled,
        mean_residual_cosine,
        mean_weight,
        spread,
    )

    tensors = reading.tensors
    models = [str(item) for item in seen.inputs]
    labels = _labels(len(models))
    ours = seen.merge_yaml.method == "yoyo_fusion"

    table = Table(box=None, pad_edge=False)
    table.add_column("% from the center")
    for label in labels:
        table.add_column(label, justify="right")
    for kind, group in grouped(tensors, lambda tensor: tensor.place.kind).items():
        table.add_row(str(kind), *(_percent(spread(group, model)) for model in models))
    table.add_row("all", *(_percent(spread(tensors, m)) for m in models), style="bold")
    table.add_row(
        "weight" if ours else "weight in yoyo_fusion",
        *(_share(mean_weight(tensors, model)) for model in models),
        style="bold",
    )
    strengths = [tensor.strength for tensor in tensors if tensor.strength is not None]
    if strengths:
        recalled = (_share(mean_recalled(tensors, model)) for model in models)
        table.add_row("recalled of its own", *recalled, style="bold")
    for label, model in zip(labels, models, strict=True):
        cosines = [mean_residual_cosine(tensors, model, other) for other in models]
        table.add_row(
            f"residuals: cosine with {label}", *("" if c is None else f"{c:.2f}" for c in cosines)
        )
    out.print()
    out.print(table, soft_wrap=False)
    if strengths:
        conditions = [tensor.condition for tensor in tensors if tensor.condition is not None]
        worst = f", condition numbers below {max(conditions):,.0f}" if conditions else ""
        low, high = f"{min(strengths):.2f}", f"{max(strengths):.2f}"
        out.print(f"recall: strength {low}{f' to {high}' if high != low else ''}{worst}")

    layers = grouped((t for t in tensors if t.place.layer is not None), lambda t: t.place.layer)
    if len(layers) > 1:
        columns = list(layers.values())
        size = -(-len(columns) // _COLUMNS)
        merged = [list(chain(*columns[k : k + size])) for k in range(0, len(columns), size)]
        rows = {model: [spread(group, model) for group in merged] for model in models}
        highest = max(value for row in rows.values() for value in row if value == value)
        blocks = "12345678" if out.options.ascii_only else _BLOCKS
        out.print(f"\nfrom the center, {len(layers)} layers")
        for label, row in zip(labels, rows.values(), strict=True):
            out.print(f"  {label}  {''.join(_block(value, highest, blocks) for value in row)}")
    out.print()


def _block(value: float, highest: float, blocks: str) -> str:
    if value != value or not highest:
        return " "
    return blocks[min(len(blocks) - 1, int(value / highest * len(blocks)))]


def _share(value: float) -> str:
    return "" if value != value else f"{value:.2f}"


def _percent(value: float) -> str:
    return "" if value != value else f"{100 * value:.2f}"


def _labels(count: int) -> list[str]:
    return [chr(ord("A") + k) if count <= 26 else str(k + 1) for k in range(count)]
