"""`mergekit-yoyo scores`: options for `mergekit_yoyo.scores`."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import click

from mergekit_yoyo.cli.command import Renamed, note, our_command
from mergekit_yoyo.cli.places import Place
from mergekit_yoyo.errors import YoyoError, nearest
from mergekit_yoyo.scores import (
    ModelResult,
    Table,
    build_table,
    compare,
    flipped_items,
    prepare_card,
    read_results,
    render_comparison,
    render_csv,
    render_markdown,
    render_png,
    render_road,
    render_terminal,
)
from mergekit_yoyo.staging import write_files
from mergekit_yoyo.terminal import stdout_console

_RENDERERS: dict[str, Callable[[Table], bytes]] = {
    ".md": lambda table: render_markdown(table).encode(),
    ".csv": lambda table: render_csv(table).encode(),
    ".png": render_png,
}


@our_command("scores")
@click.argument(
    "paths",
    metavar="RESULT...",
    nargs=-1,
    required=True,
    type=Place("results of lm-eval", "a folder of results", "a model folder", "an MLX model"),
)
@click.option(
    "-o",
    "--output",
    "outs",
    cls=Renamed,
    old=["--out"],
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the table to a .md, .csv or .png file; may be repeated.",
)
@click.option(
    "--road",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw each task over the versions of rows named VERSION-QUANTIZATION, in their order.",
)
@click.option(
    "--columns",
    metavar="NAME,...",
    help="Only these, in this order: tasks, and perplexity, kl, top1 (or kl:TEXT), size, bits, "
    "memory, prompt, generation.",
)
@click.option("--tasks", "old_columns", hidden=True)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="TASK=METRIC",
    help="Metric of a task.  [default: acc_norm, else acc]",
)
@click.option(
    "--name", "names", multiple=True, metavar="OLD=NEW", help="Rename a row, by name or path."
)
@click.option(
    "--card",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Put the table and model-index metadata into this model folder's card.",
)
@click.option("--eval-results", is_flag=True, help="With --card: also write .eval_results/*.yaml.")
@click.option(
    "--compare",
    "pair",
    nargs=2,
    metavar="A B",
    help="Compare two rows, by name or path: differences, paired errors, flipped items, p.",
)
@click.option(
    "--items",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="With --compare: write the flipped items as JSON Lines; - for the terminal.",
)
def command(
    paths: tuple[Path, ...],
    outs: tuple[Path, ...],
    road: Path | None,
    columns: str | None,
    old_columns: str | None,
    metrics: tuple[str, ...],
    names: tuple[str, ...],
    card: Path | None,
    eval_results: bool,
    pair: tuple[str, str] | None,
    items: Path | None,
) -> None:
    """The table of benchmark scores in RESULT...: results of evaluate, lm_eval or mlx_lm.evaluate
    (files or folders), or a Markdown table.

    The best of a column is marked only where it is told apart from every other row beyond 95 %.

    \b
    Examples:
      mergekit-yoyo scores scores/* -o scores.md -o scores.png
      mergekit-yoyo scores scores/* --compare merged merged-mlx
      mergekit-yoyo scores examples/published-scores.md --road road.png
    """
    if road and road.suffix != ".png":
        raise YoyoError(f"--road {road}: expected a .png file.")
    for out in outs:
        if out.suffix not in _RENDERERS:
            raise YoyoError(f"--output {out}: expected one of {', '.join(_RENDERERS)}.")
        if not out.parent.is_dir():
            raise YoyoError(f"--output {out}: no folder {out.parent}.")
    if eval_results and card is None:
        raise YoyoError("--eval-results needs --card FOLDER.")
    if items and not pair:
        raise YoyoError("--items needs --compare A B.")
    if pair and (outs or card or road):
        raise YoyoError(
            "--compare shows two rows and writes no table: leave out --output, --card and --road, "
            "or run scores again for them."
        )
    results = read_results(paths, _pairs("--name", names))
    named = columns or old_columns
    wanted = [name.strip() for name in named.split(",")] if named else None
    chosen = _pairs("--metric", metrics)
    console = stdout_console()
    if pair:
        a, b = (_find(results, name) for name in pair)
        comparison = compare(a, b, wanted, chosen)
        flips = flipped_items(comparison) if items else ()
        lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in flips)
        console.print(render_comparison(comparison))
        if items == Path("-"):
            click.echo(lines, nl=False)
        elif items:
            _write({items: lines.encode()})
        return
    table = build_table(results, wanted, chosen)
    files = {out: _RENDERERS[out.suffix](table) for out in outs}
    if road:
        files[road] = render_road(table)
    notes: Sequence[str] = ()
    if card:
        prepared = prepare_card(table, card, eval_results=eval_results)
        files |= prepared.files
        notes = prepared.notes
    console.print(render_terminal(table))
    _write(files)
    for text in notes:
        note(f"{card}: {text}")


def _write(files: Mapping[Path, bytes]) -> None:
    write_files(files)
    for file in files:
        note(f"wrote {file}")


def _pairs(option: str, values: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not (key and equals and rest):
            raise YoyoError(f"{option} {value}: expected {option} OLD=NEW.")
        pairs[key] = rest
    return pairs


def _find(results: list[ModelResult], name: str) -> ModelResult:
    for result in results:
        if name == result.name or Path(name) in (result.source, *result.source.parents):
            return result
    raise YoyoError(f"--compare {name}: no such row. {nearest(name, [r.name for r in results])}")
