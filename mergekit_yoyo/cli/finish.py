"""`mergekit-yoyo finish`: make a merge look like the models that went in."""

from pathlib import Path
from typing import Literal

import click

from mergekit_yoyo.cli.command import our_command, shown_progress
from mergekit_yoyo.cli.places import Kind, Place
from mergekit_yoyo.terminal import stdout_console

Folder = click.Path(path_type=Path)


NOT_MLX: dict[Kind, str] = {
    "an MLX model": "Finish the merge that it was made of, then convert that with "
    "`mergekit-yoyo mlx`."
}


@our_command("finish")
@click.argument("merge", type=Place("a model folder", advice=NOT_MLX))
@click.option(
    "--check", is_flag=True, help="Only report what would change; exit with 1 if anything would."
)
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=Folder,
    help="Write a finished copy here and leave MERGE alone.",
)
@click.option(
    "--donor",
    metavar="PATH_OR_REPO",
    type=Place("a model folder", path_type=str),
    help="The model to look like.  [default: base_model, else the input whose files MERGE has]",
)
@click.option(
    "--config",
    metavar="YAML",
    type=Place("a merge YAML"),
    help="The merge YAML, if mergekit's run died before it left it in MERGE.",
)
@click.option(
    "--config-style",
    type=click.Choice(["donor", "both"]),
    default="donor",
    show_default=True,
    help="config.json in the donor's spelling, or the old and the new one side by side.",
)
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    help="Of the weight files.",
)
@click.option(
    "--complete",
    is_flag=True,
    help="First merge what an older run left out of MERGE, from the inputs in its YAML.",
)
@click.option(
    "--without-mtp",
    is_flag=True,
    help="Accept that MERGE lacks its donor's blocks for multi-token prediction.",
)
@click.option("--online", is_flag=True, help="Let the Hub itself validate the card as well.")
def command(
    merge: Path,
    check: bool,
    output: Path | None,
    donor: str | None,
    config: Path | None,
    config_style: Literal["donor", "both"],
    max_shard_size: str,
    complete: bool,
    without_mtp: bool,
    online: bool,
) -> None:
    """Make MERGE, a folder that mergekit wrote, look like the models that went in.

    Tensor names and shapes, config.json, tokenizer files and the model card become those that
    every loader and the Hub expect. A second run changes nothing.

    \b
    Examples:
      mergekit-yoyo finish ./merged --check
      mergekit-yoyo finish ./merged -o ./finished
    """
    from mergekit_yoyo import finish as finishing
    from mergekit_yoyo.finish import finish, plan_finish, upload_command

    out = stdout_console()
    with shown_progress() as progress:
        if complete:
            if check:
                raise click.UsageError("--complete writes tensors, and --check writes nothing.")
            merge_yaml = finishing.merge_yaml_of(merge, config)
            added = finishing.complete(merge, merge_yaml, output=output, progress=progress)
            progress.say(
                f"completed: {len(added)} tensors" + (f" like {added[0]}" if added else "")
            )
            if added and output:
                merge, output = output, None
        progress.begin("Comparing the merge with its donor")
        plan = plan_finish(
            merge,
            config=config,
            donor=donor,
            config_style=config_style,
            name=output.resolve().name if output else None,
            without_mtp=without_mtp,
        )
        for line in (f"donor: {plan.donor.name}", *(f"note: {note}" for note in plan.notes)):
            progress.say(line)
        if not plan.layout.changed:
            out.print("weights: already in the donor's layout; left untouched")
        if not check:
            target = finish(
                plan,
                output=output,
                max_shard_size=max_shard_size,
                online=online,
                progress=progress,
            )
    for difference in plan.differences:
        out.print(f"{'would change' if check else 'changed'} {difference}")
    if check:
        out.print(f"{merge}: {'differs from its donor' if plan.differences else 'nothing to do'}")
        raise SystemExit(1 if plan.differences else 0)
    done = "finished" if plan.differences or output else "nothing to do"
    # A command must not be broken into lines, which a terminal would not join when it is copied.
    out.print(f"{target}: {done}. To publish it:\n\n  {upload_command(target)}", soft_wrap=True)
