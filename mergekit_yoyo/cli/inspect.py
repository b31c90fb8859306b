"""`mergekit-yoyo inspect`: options for `mergekit_yoyo.inspection`."""

from pathlib import Path

import click

from mergekit_yoyo.terminal import TerminalProgress, stderr_console, stdout_console


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
    with stderr_console().status("Loading mergekit"):
        from mergekit_yoyo.inspection import inspect, show
    with TerminalProgress() as progress:
        seen = inspect(merge_yaml, quick=quick, output=output, progress=progress)
    show(seen, merge_yaml, stdout_console())
    raise SystemExit(1 if seen.failed else 0)
