"""`mergekit-yoyo report`: options for `mergekit_yoyo.report`."""

from pathlib import Path

import click

from mergekit_yoyo.cli.command import note, our_command
from mergekit_yoyo.cli.places import Place
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.record.reading import read_record
from mergekit_yoyo.report import (
    compare_records,
    render_comparison,
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
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write one self-contained page: heat maps, distances, all tensors.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the heat map of the weights, for a model card.",
)
def command(record: Path, other: Path | None, html: Path | None, png: Path | None) -> None:
    """What a merge did, from the RECORD that `parameters: {report: FILE}` in its YAML leaves.

    With OTHER, the record of another merge of the same inputs: what differs between the two.

    \b
    Examples:
      mergekit-yoyo report ./merged-report.jsonl --html report.html
      mergekit-yoyo report before.jsonl after.jsonl
    """
    for option, out in (("--html", html), ("--png", png)):
        if out and other:
            raise YoyoError(
                f"{option} shows one merge, and two records are compared in the terminal only: "
                f"leave out {option}, or {other}."
            )
        if out and not out.parent.is_dir():
            raise YoyoError(f"{option} {out}: no folder {out.parent}.")
        if out and out.resolve() == record.resolve():
            raise YoyoError(f"{option} {out}: that is the record. Choose another name.")
    if html and png and html.resolve() == png.resolve():
        raise YoyoError(f"--html and --png: both are {html}. Choose two names.")
    console = stdout_console()
    width = None if console.is_terminal else _PIPED_WIDTH
    if other:
        compared = compare_records(read_record(record), read_record(other))
        console.print(render_comparison(compared), soft_wrap=False, width=width)
        return
    summary = summarize(read_record(record))
    files = {}
    if html:
        files[html] = render_page(summary).encode()
    if png:
        files[png] = render_picture(summary)
    console.print(render_summary(summary), soft_wrap=False, width=width)
    write_files(files)
    for file in files:
        note(f"wrote {file}")
