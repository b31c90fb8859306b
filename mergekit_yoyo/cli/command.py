"""What all commands have in common: how much they say, paths that are checked, names that changed.

@our_command("inspect")
@click.argument("merge_yaml", type=Place("a merge YAML"))
def command(merge_yaml: Path) -> None: ...
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from mergekit_yoyo.cli.places import Place
from mergekit_yoyo.errors import YoyoError, first_line
from mergekit_yoyo.progress import SILENT, Progress

_SAID = "mergekit_yoyo.said"  # in the context: how much is said, `quiet` or `verbose`


class Command(click.Command):
    """A command that looks at its paths before it runs: what stands there must be of its kind."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run.

        Raises:
            YoyoError: something else stands where a path leads, see `Place`.
        """
        for parameter in self.params:
            if isinstance(parameter.type, Place) and parameter.name:
                given = ctx.params.get(parameter.name)
                for path in given if isinstance(given, tuple) else (given,):
                    if path is not None:
                        parameter.type.check(Path(path))
        if is_verbose(ctx):
            logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        elif is_quiet(ctx):  # not while options are read: what is refused then closes nothing
            logging.disable(logging.WARNING)
            ctx.call_on_close(lambda: logging.disable(logging.NOTSET))
        return super().invoke(ctx)


def our_command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A `Command` with the options that each of ours has: `--quiet` and `--verbose`."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        made = click.command(name, cls=Command)(function)
        for flag, text in (
            ("quiet", "Say the result and errors only."),
            ("verbose", "Say more: logs of mergekit and others, and a traceback with an error."),
        ):
            made.params.append(
                click.Option(
                    [f"-{flag[0]}", f"--{flag}"],
                    is_flag=True,
                    expose_value=False,
                    callback=_note_how_much,
                    help=text,
                )
            )
        return made

    return decorate


def _note_how_much(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value:
        return
    if _SAID in ctx.meta:
        raise click.UsageError("--quiet and --verbose: give one of them.")
    ctx.meta[_SAID] = parameter.name


def is_quiet(ctx: click.Context | None = None) -> bool:
    """Whether only the result and errors are said."""
    return (ctx or click.get_current_context()).meta.get(_SAID) == "quiet"


def is_verbose(ctx: click.Context | None = None) -> bool:
    """Whether all is said."""
    return (ctx or click.get_current_context()).meta.get(_SAID) == "verbose"


def shown_progress() -> AbstractContextManager[Progress]:
    """The progress of a command: on the terminal, or nowhere."""
    from mergekit_yoyo.terminal import TerminalProgress  # `--help` does without

    return nullcontext(SILENT) if is_quiet() else TerminalProgress()


def note(text: str) -> None:
    """Say something besides the result."""
    if not is_quiet():
        click.echo(text, err=True)


def output_folder(target: Path | None, output: Path | None, line: str) -> Path:
    """The folder to write, given as an argument or as `--output`.

    line: how the command is called.

    Raises:
        YoyoError: neither is given, or two that differ.
    """
    folder = target or output
    if folder is None:
        raise YoyoError(f"expected a folder to write: {line}.")
    if target and output and target != output:
        raise YoyoError(f"{target} and --output {output}: give one folder to write.")
    return folder


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        YoyoError: it is none, or not here.
    """
    import torch

    try:
        torch.empty(1, device=device).item()  # of `meta`, it cannot be had
    except Exception as error:  # each kind of device refuses in its own way
        reason = first_line(error)
        raise YoyoError(f"--device {device}: torch cannot use it here ({reason}).") from None


def size_in_bytes(option: str, text: str | None) -> int | None:
    """`16GB` as a number, None if `text` is.

    Raises:
        YoyoError: it is no size.
    """
    if text is None:
        return None
    from huggingface_hub.serialization._base import parse_size_to_int

    try:
        if (size := int(parse_size_to_int(text.upper()))) > 0:
            return size
        raise ValueError
    except ValueError:
        raise YoyoError(f"{option}: expected a size such as 16GB; got {text}.") from None


class Renamed(click.Option):
    """An option that had other names before: they go on working, and are not shown.

    old: these names.
    """

    def __init__(self, declarations: Sequence[str], *, old: Sequence[str], **settings: Any) -> None:
        super().__init__([*declarations, *old], **settings)
        self.old = frozenset(old)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The names of today, and the text."""
        with self._names_of_today():
            return super().get_help_record(ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """The names of today, for an error about its value."""
        with self._names_of_today():
            return super().get_error_hint(ctx)

    @contextmanager
    def _names_of_today(self) -> Iterator[None]:
        names, self.opts = self.opts, [name for name in self.opts if name not in self.old]
        try:
            yield
        finally:
            self.opts = names
