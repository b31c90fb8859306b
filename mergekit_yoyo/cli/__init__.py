"""The `mergekit-yoyo` command: a table of subcommands, each loaded only when it is asked for."""

import atexit
import errno
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import NoReturn

import click

from mergekit_yoyo import __version__
from mergekit_yoyo.cli.command import is_verbose
from mergekit_yoyo.errors import YoyoError, explain_os_error, nearest

# name -> (module that holds a click command called `command`, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("mergekit_yoyo.cli.doctor", "Say whether mergekit knows yoyo_fusion."),
    "merge": ("mergekit_yoyo.cli.merge", "Merge: look, all cores, finish; goes on after a crash."),
    "inspect": ("mergekit_yoyo.cli.inspect", "Look at a merge before it is run."),
    "tune": ("mergekit_yoyo.cli.tune", "Find the strength of a merge, without data."),
    "report": ("mergekit_yoyo.cli.report", "Show what a merge did: summary, page, pictures."),
    "finish": ("mergekit_yoyo.cli.finish", "Make a merge look like the models that went in."),
    "mlx": ("mergekit_yoyo.cli.mlx", "Convert a merge to a quantized MLX model, verified."),
    "evaluate": (
        "mergekit_yoyo.cli.evaluate",
        "Run the seven tasks of the usual table (or others) with lm-evaluation-harness.",
    ),
    "scores": (
        "mergekit_yoyo.cli.scores",
        "Make the table of benchmark scores, or compare two models item by item.",
    ),
}

# For the bars of other libraries in a log: none, or where one insists, a line each five minutes.
QUIET_BARS = {"TQDM_DISABLE": "1", "TQDM_MININTERVAL": "300", "TQDM_MAXINTERVAL": "300"}


class LazyCommands(click.Group):
    """A group whose subcommands are imported on use: `--help` must not cost an import of torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            raise YoyoError(f"no command {args[0]}. {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        if not sys.stderr.isatty():
            for option, value in QUIET_BARS.items():
                os.environ.setdefault(option, value)
        try:
            return super().invoke(ctx)
        except YoyoError as error:
            if is_verbose(ctx):
                traceback.print_exc()
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads our output has seen enough
                raise
            click.echo(f"Error: {explain_os_error(error)}", err=True)
            sys.exit(2)


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mergekit-yoyo")
def main() -> None:
    """YOYO-Fusion for mergekit, and the road from a merge to a published model."""


def _end(kind: int, _: object) -> NoReturn:
    """End as after Ctrl-C: what is half-written is cleared, workers end."""
    sys.exit(128 + kind)


def run() -> NoReturn:
    """The command as a process: `main`, and an end at once.

    Taking the interpreter apart object by object costs 0.4 s once torch is loaded; what is
    registered to happen at the end happens.
    """
    status: object = 2
    signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    except OSError as error:  # of printing: what a command meets, it tells itself
        click.echo(f"Error: {explain_os_error(error)}", err=True)
    for kind in (signal.SIGINT, signal.SIGTERM):  # it ends already
        signal.signal(kind, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except OSError as error:
        if not status:  # else it was told
            click.echo(f"Error: {explain_os_error(error)}", err=True)
            status = 2
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))
