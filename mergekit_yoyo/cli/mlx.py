"""`mergekit-yoyo mlx`: parse, call `mergekit_yoyo.mlx`, print."""

import sys
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from mergekit_yoyo import mlx
from mergekit_yoyo.cli.command import is_quiet, note, our_command, output_folder
from mergekit_yoyo.cli.places import Kind, Place
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.staging import format_bytes

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
    # Names and regular expressions may hold brackets, and a pipe has no width.
    width = None if sys.stdout.isatty() else 160
    out = Console(markup=False, highlight=False, soft_wrap=True, width=width)
    if list_recipes:
        _refuse_beside_list()
        plans = mlx.plan_exports(
            source, list(mlx.recipe_names()), context=max_context, revision=revision
        )
        out.print(_list_table(plans))
        return
    if (quant is None) == (recipe_file is None):
        raise YoyoError("expected one of --quant NAME and --recipe FILE (--list shows the names).")
    recipe = mlx.parse_recipe(quant) if quant else mlx.load_recipe(recipe_file or Path())
    recipe = recipe.changed(
        period=period,
        offset=offset,
        projections=projections or None,
        group_size=group_size,
        modules=_bits_by_module(modules) or None,
        dtype=dtype,
    )
    if plan_only:
        plan = mlx.plan_export(source, recipe, context=max_context, revision=revision)
        out.print(_plan_table(plan))
        _print_notes(plan.notes)
        return
    target = output_folder(target, output, "mergekit-yoyo mlx SOURCE FOLDER --quant NAME")
    made = mlx.export_model(
        source,
        target,
        recipe,
        verify=verify,
        max_kl=max_kl,
        context=max_context,
        base_model=base_model,
        revision=revision,
        overwrite=overwrite,
        progress=not is_quiet(),
    )
    out.print(_plan_table(made.plan))
    if made.verification:
        drift = made.verification.drift
        out.print(
            f"against transformers, unquantized: {made.verification.graph_difference:.1e} of the "
            f"logits' standard deviation\nas written: top-1 agreement {drift.top1_agreement:.1%}, "
            f"KL {drift.kl:.2g} nats per token, largest difference {drift.max_difference:.2g}"
        )
    _print_notes(made.notes)
    click.echo(f"{made.folder}: ready for mlx_lm.load")


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


def _plan_table(plan: "mlx.Plan") -> Table:
    table = Table(
        title=f"{plan.recipe.name}: {plan.bits_per_weight:.2f} bits per weight, "
        f"{format_bytes(plan.folder_bytes)}",
        caption=f"memory: about {format_bytes(plan.converting_bytes)} to convert, "
        f"{format_bytes(plan.running_bytes)} to run (4,096 tokens)",
        show_footer=True,
    )
    footer = ("all", f"{plan.bits_per_weight:.2f}", "", str(len(plan.placements)))
    headers = ("modules", "bits", "group size", "count")
    for header, total in zip(headers, footer, strict=True):
        table.add_column(header, total)
    table.add_column("parameters", f"{plan.parameters:,}", justify="right")
    table.add_column("size", format_bytes(plan.bytes), justify="right")
    for *words, parameters, size in plan.rows():
        table.add_row(*map(str, words), f"{parameters:,}", format_bytes(size))
    return table


def _list_table(plans: "list[mlx.Plan]") -> Table:
    table = Table("recipe", "bits per weight", "size")
    for plan in sorted(plans, key=lambda plan: plan.bytes):
        table.add_row(plan.recipe.name, f"{plan.bits_per_weight:.2f}", format_bytes(plan.bytes))
    return table


def _print_notes(notes: "list[str] | tuple[str, ...]") -> None:
    for text in notes:
        note(f"note: {text}")
