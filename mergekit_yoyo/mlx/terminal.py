"""Plans and exports for the terminal."""

from rich.console import Console
from rich.table import Table

from mergekit_yoyo.mlx.export import Export
from mergekit_yoyo.mlx.plan import ExportPlan
from mergekit_yoyo.staging import format_bytes


def show_plans(plans: list[ExportPlan], console: Console) -> None:
    """Print what the recipes of one model come to, the smallest first."""
    table = Table("recipe", "bits per weight", "size")
    for plan in sorted(plans, key=lambda plan: plan.bytes):
        table.add_row(plan.recipe.name, f"{plan.bits_per_weight:.2f}", format_bytes(plan.bytes))
    console.print(table)


def show_plan(plan: ExportPlan, console: Console) -> None:
    """Print what each kind of module gets."""
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
    console.print(table)


def show_export(made: Export, console: Console) -> None:
    """Print what was made, and how it compares."""
    show_plan(made.plan, console)
    if made.verification:
        drift, seen = made.verification.drift, made.verification.picture_difference
        after = "" if seen is None else f", after a picture {seen:.1e}"
        console.print(
            f"against transformers, unquantized: {made.verification.graph_difference:.1e} of the "
            f"logits' standard deviation{after}\nas written: top-1 agreement "
            f"{drift.top1_agreement:.1%}, KL {drift.kl:.2g} nats per token, largest difference "
            f"{drift.max_difference:.2g}"
        )
