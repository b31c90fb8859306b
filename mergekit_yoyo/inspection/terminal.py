"""An inspection for the terminal: the models, what is wrong, the distances, the verdict."""

from collections.abc import Sequence
from itertools import chain
from math import isnan
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mergekit_yoyo.inspection.remark import Level
from mergekit_yoyo.inspection.run import Inspection
from mergekit_yoyo.record.findings import recall_said
from mergekit_yoyo.record.layers import by_kind, by_layer
from mergekit_yoyo.record.quantities import DISTANCE, WEIGHT, totals
from mergekit_yoyo.record.statistics import TensorStatistics, residual_cosines

_STYLES: dict[Level, str] = {"error": "bold red", "warning": "yellow", "note": "dim"}
_BLOCKS = "▁▂▃▄▅▆▇█"
_COLUMNS = 48  # of the row of layers, at most


def show(seen: Inspection, file: Path | str, out: Console) -> None:
    """Print an inspection of the merge YAML `file`, or of what else is called so."""
    config = seen.merge_yaml.config
    dtype = config.out_dtype or config.dtype
    out.print(f"{file}: {seen.merge_yaml.method}{f' in {dtype}' if dtype else ''}")
    labels = _labels(len(seen.inputs))
    for label, item in zip(labels, seen.inputs, strict=True):
        out.print(f"  {label}  {seen.in_its_words(str(item))}: {item.summary}")
    for level, style in _STYLES.items():
        for text in seen.of_level(level):
            out.print(Text.assemble((level, style), ": ", text))
    if seen.reading is not None and seen.reading.tensors:
        tensors = seen.reading.tensors
        out.print()
        ours = seen.merge_yaml.method == "yoyo_fusion"
        out.print(_numbers(tensors, labels, ours), soft_wrap=False)
        if said := recall_said(tensors):
            out.print(said)
        _show_layers(tensors, labels, out)
        out.print()
    out.print(f"{file}: {_verdict(seen)}", style="bold")


def _verdict(seen: Inspection) -> str:
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


def _numbers(tensors: Sequence[TensorStatistics], labels: Sequence[str], ours: bool) -> Table:
    """Each model's distance by kind of module, and all that is known of it as a whole."""
    count = len(labels)
    table = Table(box=None, pad_edge=False)
    table.add_column("% from the center")
    for label in labels:
        table.add_column(label, justify="right")
    for kind, group in by_kind(tensors).items():
        table.add_row(kind, *map(_percent, DISTANCE.over(group, count).tolist()))
    table.add_row("all", *map(_percent, DISTANCE.over(tensors, count).tolist()), style="bold")
    for quantity, values in totals(tensors, count).items():
        if quantity != DISTANCE:
            title = (
                f"{quantity.title}{' in yoyo_fusion' if quantity == WEIGHT and not ours else ''}"
            )
            table.add_row(title, *map(quantity.text, values.tolist()), style="bold")
    for i, row in enumerate(residual_cosines(tensors, count).tolist()):
        cells = ["" if i == j else "-" if isnan(c) else f"{c:.2f}" for j, c in enumerate(row)]
        table.add_row(f"residuals: cosine with {labels[i]}", *cells)
    return table


def _show_layers(tensors: Sequence[TensorStatistics], labels: Sequence[str], out: Console) -> None:
    """How far each model is from the center, as a row of blocks over the layers."""
    layers = by_layer(tensors)
    if len(layers) < 2:
        return
    columns = list(layers.values())
    size = -(-len(columns) // _COLUMNS)
    groups = [list(chain(*columns[k : k + size])) for k in range(0, len(columns), size)]
    rows = np.array([DISTANCE.over(group, len(labels)) for group in groups]).T
    highest = float(np.nanmax(rows))
    blocks = "12345678" if out.options.ascii_only else _BLOCKS
    out.print(f"\nfrom the center, {len(layers)} layers")
    for label, row in zip(labels, rows.tolist(), strict=True):
        out.print(f"  {label}  {''.join(_block(value, highest, blocks) for value in row)}")


def _block(value: float, highest: float, blocks: str) -> str:
    if isnan(value) or not highest:
        return " "
    return blocks[min(len(blocks) - 1, int(value / highest * len(blocks)))]


def _percent(value: float) -> str:
    return "-" if isnan(value) else f"{100 * value:.2f}"


def _labels(count: int) -> list[str]:
    return [chr(ord("A") + k) if count <= 26 else str(k + 1) for k in range(count)]
