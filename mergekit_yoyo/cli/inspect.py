"""`mergekit-yoyo inspect`: options for `mergekit_yoyo.inspection`."""

from contextlib import nullcontext
from pathlib import Path

import click

from mergekit_yoyo.cli.command import is_quiet, our_command, shown_progress
from mergekit_yoyo.cli.places import Place
from mergekit_yoyo.outside import read_text
from mergekit_yoyo.terminal import stderr_console, stdout_console


@our_command("inspect")
@click.argument("merge_yaml", metavar="YAML", type=Place("a merge YAML", "a mergekit-multi file"))
@click.option("--quick", is_flag=True, help="Stop before the weights; download only small files.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="FOLDER",
    help="Where the merge will be written: its disk is asked for space.  [default: here]",
)
def command(merge_yaml: Path, quick: bool, output: Path) -> None:
    """Look at the merge of YAML before it is run. Nothing is written.

    Of a file for mergekit-multi each stage is looked at.

    The exit status is 1 if mergekit-yaml would fail or the merge would not be what the file says,
    0 if there are only warnings, and 2 if the file cannot be read.

    \b
    Examples:
      mergekit-yoyo inspect merge.yml
      mergekit-yoyo inspect merge.yml --quick -o /mnt/models
    """
    with nullcontext() if is_quiet() else stderr_console().status("Loading mergekit"):
        from mergekit_yoyo.inspection import inspect, inspect_stages, is_multi, show
    if is_multi(read_text(merge_yaml)):
        with shown_progress() as progress:
            stages = inspect_stages(merge_yaml, quick=quick, output=output, progress=progress)
        for name, stage in stages.items():
            show(stage, f"{merge_yaml}, {name}", stdout_console())
        raise SystemExit(1 if any(stage.failed for stage in stages.values()) else 0)
    with shown_progress() as progress:
        seen = inspect(merge_yaml, quick=quick, output=output, progress=progress)
    show(seen, merge_yaml, stdout_console())
    raise SystemExit(1 if seen.failed else 0)
