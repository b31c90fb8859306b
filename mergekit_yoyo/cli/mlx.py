"""`mergekit-yoyo mlx`: parse, call `mergekit_yoyo.mlx`, print."""

from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

from mergekit_yoyo import mlx
from mergekit_yoyo.cli.command import (
    note,
    our_command,
    output_folder,
    shown_progress,
    size_in_bytes,
)
from mergekit_yoyo.cli.places import Kind, Place
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.terminal import stdout_console

UNQUANTIZED: dict[Kind, str] = {
    "an MLX model": "Start from the model that it was made of, whose weights are whole."
}
HEEDED_BY_LIST = {
    *("source", "list_recipes", "max_context", "revision", "pictures"),
    *("quiet", "verbose"),
}
OF_RECIPES = {"recipe_file", "plan_only", "period", "offset", "projections", "modules"}
OF_AUTO = {"bpw", "size", "weights"}


@our_command("mlx")
@click.argument("source", type=Place("a model folder", advice=UNQUANTIZED, path_type=str))
@click.argument("target", metavar="FOLDER", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="FOLDER", type=click.Path(path_type=Path), help="The same as FOLDER."
)
@click.option(
    "--quant",
    metavar="NAME",
    help="Recipe: qx86-hi, qx64, q6, mxfp4, bf16, ... (--list); auto: bits where they pay.",
)
@click.option(
    "--bpw", metavar="BITS", type=float, help="With --quant auto: bits per weight, all in all."
)
@click.option("--size", metavar="SIZE", help="With --quant auto: of the folder, e.g. 30GB.")
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="NAME=FILE",
    help="With --quant auto or --rounding feedback: measure on this (repeatable).  "
    "[default: what the model writes itself]",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="NAME=W",
    help="With --quant auto: how much a text counts (repeatable).  [default: 1]",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "search", "feedback"]),
    default="nearest",
    show_default=True,
    help="search: scales of least error, some 5 million weights a second on a core; feedback: "
    "errors are made up for along a row (GPTQ), from 1 to 3 million, and the text is read.",
)
@click.option(
    "--recipe",
    "recipe_file",
    metavar="YAML",
    type=click.Path(path_type=Path),
    help="YAML file with fields of a recipe; `base: NAME` starts from a named one.",
)
@click.option(
    "--list", "list_recipes", is_flag=True, help="All recipes with their size for SOURCE."
)
@click.option(
    "--plan",
    "plan_only",
    is_flag=True,
    help="Print what each module would get; stop. A SOURCE on the Hub is downloaded first.",
)
@click.option(
    "--period",
    metavar="N",
    type=int,
    help="Attention at the high width in every N-th layer; 0: none.",
)
@click.option(
    "--offset", metavar="N", type=int, help="The first layer with attention at the high width."
)
@click.option(
    "--projection",
    "projections",
    multiple=True,
    metavar="REGEX",
    help="Which projections are attention paths (repeatable), e.g. '[vo]_proj'.",
)
@click.option(
    "--group-size", metavar="N", type=int, help="Weights that share a scale: 32, 64 or 128."
)
@click.option(
    "--bits",
    "modules",
    multiple=True,
    metavar="REGEX=BITS",
    help="Bits by module path (repeatable, the last match counts); 0: not quantized.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Of what stays unquantized; by default as stored.",
)
@click.option(
    "--verify/--no-verify",
    default=None,
    help="Compare logits with transformers; by default if it fits in memory.",
)
@click.option(
    "--max-kl", metavar="NATS", type=float, help="Refuse a drift above this, in nats per token."
)
@click.option(
    "--max-context",
    metavar="N",
    type=int,
    help="Tokens that the export is meant for, if fewer than the model's own length.",
)
@click.option(
    "--pictures/--no-pictures",
    default=None,
    help="Keep what takes pictures, for mlx-vlm; by default where mlx-vlm computes it rightly.",
)
@click.option("--base-model", metavar="OWNER/NAME", help="Hub name of the merge, for the card.")
@click.option("--revision", metavar="COMMIT", help="Branch, tag or commit of a SOURCE on the Hub.")
@click.option("--overwrite", is_flag=True, help="Replace FOLDER if it is an earlier export.")
def command(
    source: str,
    target: Path | None,
    output: Path | None,
    quant: str | None,
    bpw: float | None,
    size: str | None,
    texts: tuple[str, ...],
    weights: tuple[str, ...],
    rounding: "mlx.Rounding",
    recipe_file: Path | None,
    list_recipes: bool,
    plan_only: bool,
    period: int | None,
    offset: int | None,
    projections: tuple[str, ...],
    group_size: int | None,
    modules: tuple[str, ...],
    dtype: Literal["bfloat16", "float16", "float32"] | None,
    verify: bool | None,
    max_kl: float | None,
    max_context: int | None,
    pictures: bool | None,
    base_model: str | None,
    revision: str | None,
    overwrite: bool,
) -> None:
    """Convert the model SOURCE (a folder or a Hub name) to an MLX model in FOLDER.

    \b
    Examples:
      mergekit-yoyo mlx ./merged --list
      mergekit-yoyo mlx ./merged ./merged-mlx --quant qx86-hi
      mergekit-yoyo mlx ./merged ./merged-mlx --quant auto --bpw 6.5
    """
    from mergekit_yoyo.text import parse_texts  # `--help` does without torch

    if list_recipes:
        _refuse(_given() - HEEDED_BY_LIST, "--list shows the named recipes as they are, without")
        mlx.show_plans(
            mlx.plan_exports(
                source,
                list(mlx.recipe_names()),
                context=max_context,
                revision=revision,
                pictures=pictures,
            ),
            stdout_console(),
        )
        return
    recipe: mlx.Recipe | mlx.Auto
    if quant == "auto":
        _refuse(_given() & OF_RECIPES, "--quant auto finds the widths by measurement, without")
        recipe = mlx.Auto(
            bits_per_weight=bpw,
            size=size_in_bytes("--size", size),
            weights=_weights(weights),
            group_size=group_size or 64,
            dtype=dtype,
        )
    else:
        _refuse(_given() & OF_AUTO, "Without --quant auto nothing heeds")
        if rounding != "feedback":
            _refuse(
                _given() & {"texts"}, "Without --quant auto or --rounding feedback nothing heeds"
            )
        recipe = _named_recipe(quant, recipe_file).changed(
            period=period,
            offset=offset,
            projections=projections or None,
            group_size=group_size,
            modules=_bits_by_module(modules) or None,
            dtype=dtype,
        )
    if plan_only and isinstance(recipe, mlx.Recipe):
        plan = mlx.plan_export(
            source, recipe, context=max_context, revision=revision, pictures=pictures
        )
        mlx.show_plan(plan, stdout_console())
        _print_notes(plan.notes)
        return
    with shown_progress() as progress:
        made = mlx.export_model(
            source,
            output_folder(target, output, "mergekit-yoyo mlx SOURCE FOLDER --quant NAME"),
            recipe,
            texts=parse_texts(texts),
            rounding=rounding,
            verify=verify,
            max_kl=max_kl,
            context=max_context,
            pictures=pictures,
            base_model=base_model,
            revision=revision,
            overwrite=overwrite,
            progress=progress,
        )
    mlx.show_export(made, stdout_console())
    _print_notes(made.notes)
    click.echo(f"{made.folder}: ready for {made.library.replace('-', '_')}.load")


def _named_recipe(quant: str | None, file: Path | None) -> "mlx.Recipe":
    if quant is not None and file is None:
        return mlx.parse_recipe(quant)
    if file is not None and quant is None:
        return mlx.load_recipe(file)
    raise YoyoError("expected one of --quant NAME and --recipe FILE (--list shows the names).")


def _given() -> set[str]:
    """The parameters that the user gave."""
    context = click.get_current_context()
    names = [parameter.name or "" for parameter in context.command.params]
    default = ParameterSource.DEFAULT
    return {name for name in names if context.get_parameter_source(name) is not default}


def _refuse(names: set[str], reason: str) -> None:
    """Refuse parameters that would have no effect."""
    for parameter in click.get_current_context().command.params:
        if parameter.name in names:
            shown = parameter.opts[0] if parameter.param_type_name == "option" else "TARGET"
            raise YoyoError(f"{reason} {shown}: leave it out.")


def _weights(options: tuple[str, ...]) -> dict[str, float]:
    weights = {}
    for option in options:
        name, _, weight = option.partition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            raise YoyoError(f"--weight {option}: expected NAME=NUMBER, e.g. code=2.") from None
    return weights


def _bits_by_module(options: tuple[str, ...]) -> dict[str, int]:
    bits = {}
    for option in options:
        pattern, separator, width = option.rpartition("=")
        if not separator or not width.isdigit():
            raise YoyoError(f"--bits {option}: expected REGEX=BITS, e.g. 'down_proj=8'.")
        bits[pattern] = int(width)
    return bits


def _print_notes(notes: "list[str] | tuple[str, ...]") -> None:
    for text in notes:
        note(f"note: {text}")
