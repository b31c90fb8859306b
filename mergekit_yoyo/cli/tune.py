"""`mergekit-yoyo tune`: options for `mergekit_yoyo.tuning.tune`."""

from pathlib import Path
from typing import Any

import click

from mergekit_yoyo.cli.command import Renamed, check_device, note, our_command, shown_progress
from mergekit_yoyo.cli.places import Kind, Place
from mergekit_yoyo.terminal import stdout_console

ONE_MERGE: dict[Kind, str] = {
    "a mergekit-multi file": "Tune one stage at a time: write it into a file of its own."
}


@our_command("tune")
@click.argument("file", metavar="YAML", type=Place("a merge YAML", advice=ONE_MERGE))
@click.option(
    "-o",
    "--output",
    cls=Renamed,
    old=["--out"],
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("tuned.yml"),
    show_default=True,
    metavar="FILE",
    help="The YAML to write; a picture goes beside it.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="NAME=PATH",
    help="Measure on this text instead: the name of a model, or of a task. UTF-8, or JSON lines "
    'with "text". May be given again.',
)
@click.option(
    "--move",
    multiple=True,
    metavar="OPTION,...",
    help="Move these options of the merge only.  [default: what the method has: strength, "
    "consensus, ridge, weight, lambda, density, t]",
)
@click.option(
    "--by",
    type=click.Choice(["module", "layer"]),
    help="A strength of its own for attention, MLP, embeddings; or a gradient over the layers.",
)
@click.option("--candidates", type=click.IntRange(2), default=40, show_default=True, metavar="N")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Begin no candidate after this time.",
)
@click.option(
    "--samples",
    type=click.IntRange(4),
    default=64,
    show_default=True,
    metavar="N",
    help="Texts that each model writes, or windows that are read of each of yours.",
)
@click.option(
    "--tokens",
    type=click.IntRange(16),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens in each of them.",
)
@click.option(
    "--texts-folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where what the models write is kept.  [default: OUTPUT-texts]",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps.  [default: the best]")
@click.option("--alone", is_flag=True, help="Do not measure other methods for orientation.")
@click.option("--fresh", is_flag=True, help="Forget what an earlier run measured.")
def command(
    file: Path,
    output: Path,
    texts: tuple[str, ...],
    move: tuple[str, ...],
    by: Any,
    candidates: int,
    minutes: float | None,
    samples: int,
    tokens: int,
    texts_folder: Path | None,
    seed: int,
    device: str | None,
    alone: bool,
    fresh: bool,
) -> None:
    """Find the strength of the merge in YAML (and what else it may move), without data.

    Each model writes text; how far the merge is from each model on the model's own text is what
    counts. Half of the text chooses, the other half reports. Run again, it goes on.

    \b
    Examples:
      mergekit-yoyo tune merge.yml -o tuned.yml
      mergekit-yoyo tune merge.yml --text code=a.py --text prose=b.txt
    """
    from transformers.utils import logging as transformers_logging

    from mergekit_yoyo.text import Writing, parse_texts
    from mergekit_yoyo.tuning import Search, Texts, tune

    transformers_logging.disable_progress_bar()  # it would draw over ours
    folder = texts_folder or output.with_name(f"{output.stem}-texts")
    on = _device(device)
    how = Search(
        move=[name.strip() for part in move for name in part.split(",") if name.strip()],
        candidates=candidates,
        minutes=minutes,
        seed=seed,
        device=on,
        beside=not alone,
        fresh=fresh,
        by=by,
    )
    reading = Texts(
        parse_texts(texts), folder, Writing(samples, tokens, seed), length=tokens, most=samples
    )
    with shown_progress() as progress:
        done = tune(file, output, _merging(on, seed), reading, how, progress=progress)
    stdout_console().print(done.outcome.table())
    for sentence in done.outcome.sentences():
        click.echo(sentence)
    for written in done.files:
        note(f"wrote {written}")


def _merging(device: str, seed: int) -> Any:
    """Merges a YAML into a folder as `mergekit-yoyo merge` does, without finishing it."""
    from mergekit.options import MergeOptions

    from mergekit_yoyo.merging import Local, merge
    from mergekit_yoyo.model.merge_yaml import read_merge_yaml

    on = device if device.startswith("cuda") else "cpu"  # float64 parts have no place on mps
    options = MergeOptions(quiet=True, device=on, random_seed=seed, write_model_card=True)

    def into(file: Path, folder: Path) -> None:
        merge(read_merge_yaml(file), folder, options, Local(on))

    return into


def _device(given: str | None) -> str:
    """The device that was asked for, or the best there is.

    Raises:
        YoyoError: torch has no such device here.
    """
    import torch

    if given is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    check_device(given)
    return given
