"""`mergekit-yoyo mlx`: parse, call `mergekit_yoyo.mlx`, print."""

from pathlib import Path

import click
from click.core import ParameterSource

from mergekit_yoyo import mlx
from mergekit_yoyo.cli.command import note, our_command, output_folder, shown_progress
from mergekit_yoyo.cli.places import Kind, Place
from mergekit_yoyo.errors import YoyoError

UNQUANTIZED: dict[Kind, str] = {
    "an MLX model": "Start from the model that it was made of, whose weights are whole."
}


@our_command("mlx")
@click.argument("source", type=Place("a model folder", advice=UNQUANTIZED, path_type=str))
@click.argument("target", metavar="FOLDER", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="FOLDER", type=click.Path(path_type=Path), help="The same as FOLDER."
)
@click.option(
    "--quant", metavar="NAME", help="Recipe: qx86-hi, qx64, q6, mxfp4, bf16, ... (--list)"
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
@click.option("--base-model", metavar="OWNER/NAME", help="Hub name of the merge, for the card.")
@click.option("--revision", metavar="COMMIT", help="Branch, tag or commit of a SOURCE on the Hub.")
@click.option("--overwrite", is_flag=True, help="Replace FOLDER if it is an earlier export.")
def command(
    source: str,
    target: Path | None,
    output: Path | None,
    quant: str | None,
    recipe_file: Path | None,
    list_recipes: bool,
    plan_only: bool,
    period: int | None,
    offset: int | None,
    projections: tuple[str, ...],
    group_size: int | None,
    modules: tuple[str, ...],
    dtype: str | None,
    verify: bool | None,
    max_kl: float | None,
    max_context: int | None,
    base_model: str | None,
    revision: str | None,
    overwrite: bool,
) -> None:
    """Convert the model SOURCE (a folder or a Hub name) to an MLX model in FOLDER.

    \b
    Examples:
      mergekit-yoyo mlx ./merged --list
      mergekit-yoyo mlx ./merged ./merged-mlx --quant qx86-hi
    """
    if list_recipes:
        _refuse_beside_list()
        mlx.show_plans(
            mlx.plan_exports(
                source, list(mlx.recipe_names()), context=max_context, revision=revision
            )
        )
        return
    recipe = _named_recipe(quant, recipe_file).changed(
        period=period,
        offset=offset,
        projections=projections or None,
        group_size=group_size,
        modules=_bits_by_module(modules) or None,
        dtype=dtype,
    )
    if plan_only:
        plan = mlx.plan_export(source, recipe, context=max_context, revision=revision)
        mlx.show_plan(plan)
        _print_notes(plan.notes)
        return
    with shown_progress() as progress:
        made = mlx.export_model(
            source,
            output_folder(target, output, "mergekit-yoyo mlx SOURCE FOLDER --quant NAME"),
            recipe,
            verify=verify,
            max_kl=max_kl,
            context=max_context,
            base_model=base_model,
            revision=revision,
            overwrite=overwrite,
            progress=progress,
        )
    mlx.show_export(made)
    _print_notes(made.notes)
    click.echo(f"{made.folder}: ready for mlx_lm.load")


def _named_recipe(quant: str | None, file: Path | None) -> "mlx.Recipe":
    if quant is not None and file is None:
        return mlx.parse_recipe(quant)
    if file is not None and quant is None:
        return mlx.load_recipe(file)
    raise YoyoError("expected one of --quant NAME and --recipe FILE (--list shows the names).")


def _refuse_beside_list() -> None:
    """`--list` shows the named recipes as they are: an option that changes one has no effect."""
    context = click.get_current_context()
    heeded = ("source", "list_recipes", "max_context", "revision")
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in heeded or context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        shown = parameter.opts[0] if parameter.param_type_name == "option" else "TARGET"
        raise YoyoError(
            f"--list shows the named recipes as they are, without {shown}: leave it out, or use "
            "--plan."
        )


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
