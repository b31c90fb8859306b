"""`mergekit-yoyo report`: options for `mergekit_yoyo.report`."""

from collections.abc import Callable
from pathlib import Path

import click

from mergekit_yoyo.cli.command import note, our_command
from mergekit_yoyo.cli.places import Place
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.merge_yaml import MERGE_FILE
from mergekit_yoyo.record.location import record_of
from mergekit_yoyo.record.reading import Record, read_record
from mergekit_yoyo.report import (
    compare_records,
    render_comparison,
    render_comparison_page,
    render_comparison_picture,
    render_page,
    render_picture,
    render_summary,
    summarize,
)
from mergekit_yoyo.staging import write_files
from mergekit_yoyo.terminal import stdout_console

_PIPED_WIDTH = 80  # the tables fold: a log or an issue shows them as a terminal does


RECORD = Place("the record of a merge", "a model folder")


@our_command("report")
@click.argument("record", type=RECORD)
@click.argument("other", required=False, type=RECORD)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a .html file: one self-contained page with heat maps, distances, all tensors, or "
    "what changed between two merges; or a .png file: the heat maps, for a model card. May be "
    "given twice.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), hidden=True)
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), hidden=True)
@click.option(
    "--stretch",
    is_flag=True,
    help="Let colors span the weights that there are, not 0 to 1; the legend says so.",
)
def command(
    record: Path,
    other: Path | None,
    outputs: tuple[Path, ...],
    html: Path | None,
    png: Path | None,
    stretch: bool,
) -> None:
    """What a merge did, from the RECORD that `parameters: {report: FILE}` in its YAML leaves.

    RECORD may also be the folder of the merge. With OTHER, the record of another merge of the same
    inputs: what differs between the two.

    \b
    Examples:
      mergekit-yoyo report ./merged
      mergekit-yoyo report ./merged-report.jsonl -o report.html -o map.png
      mergekit-yoyo report A.jsonl B.jsonl -o changes.html
    """
    html = _of_suffix(outputs, ".html", html)
    png = _of_suffix(outputs, ".png", png)
    _check_outputs(html, png)
    read = [_read(path) for path in (record, other) if path]
    for option, out in (("--html", html), ("--png", png)):
        if out and any(out.resolve() == each.path.resolve() for each in read):
            raise YoyoError(f"{option} {out}: that is the record. Choose another name.")
    if other:
        if stretch:
            raise YoyoError(
                "--stretch is for the weights of one merge: changes always have colors that span "
                f"them. Leave out --stretch, or {other}."
            )
        compared = compare_records(*read)
        shown = render_comparison(compared)
        draw: dict[Path | None, Callable[[], bytes]] = {
            html: lambda: render_comparison_page(compared).encode(),
            png: lambda: render_comparison_picture(compared),
        }
    else:
        summary = summarize(read[0])
        shown = render_summary(summary)
        draw = {
            html: lambda: render_page(summary, stretch=stretch).encode(),
            png: lambda: render_picture(summary, stretch=stretch),
        }
    console = stdout_console()
    width = None if console.is_terminal else _PIPED_WIDTH
    console.print(shown, soft_wrap=False, width=width)
    _write(draw)


def _of_suffix(outputs: tuple[Path, ...], suffix: str, given: Path | None) -> Path | None:
    """The one output of a kind, given with `--output` or with the earlier option of its own.

    Raises:
        YoyoError: there are two, or one of no kind.
    """
    for output in outputs:
        if output.suffix not in (".html", ".png"):
            raise YoyoError(f"--output {output}: expected a .html or .png file.")
    found = [output for output in outputs if output.suffix == suffix]
    if len(found) + (given is not None) > 1:
        raise YoyoError(f"--output {found[-1]}: give one {suffix} file.")
    return found[0] if found else given


def _check_outputs(html: Path | None, png: Path | None) -> None:
    for option, out in (("--html", html), ("--png", png)):
        if out and not out.parent.is_dir():
            raise YoyoError(f"{option} {out}: no folder {out.parent}.")
    if html and png and html.resolve() == png.resolve():
        raise YoyoError(f"--html and --png: both are {html}. Choose two names.")


def _read(path: Path) -> Record:
    """The record in a file, or of the merge in a folder."""
    if not path.is_dir():
        return read_record(path)
    record = record_of(path, path / MERGE_FILE)
    note(f"{path}: its record is {record.path}")
    return record


def _write(draw: dict[Path | None, Callable[[], bytes]]) -> None:
    """Write what can be drawn; then say what cannot."""
    files, failed = {}, []
    for file, bytes_of in draw.items():
        if file:
            try:
                files[file] = bytes_of()
            except YoyoError as error:
                failed.append(f"{file}: not written: {error}")
    write_files(files)
    for written in files:
        note(f"wrote {written}")
    if failed:
        raise YoyoError(" ".join(failed))
