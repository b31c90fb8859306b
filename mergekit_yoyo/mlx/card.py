"""The card of an mlx export: front matter that the Hub accepts, and our section of the body.

The section's words stand in `card.md.jinja`.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mergekit_yoyo import __version__
from mergekit_yoyo import card as cards
from mergekit_yoyo.mlx.plan import ExportPlan
from mergekit_yoyo.mlx.recipes import Recipe
from mergekit_yoyo.mlx.source import Source
from mergekit_yoyo.mlx.verify import Verification
from mergekit_yoyo.staging import format_bytes

SECTION = "mlx"
READING, SEEING = "text-generation", "image-text-to-text"
_PACKAGES = ("mlx", "transformers")


@dataclass(frozen=True)
class BegunCard:
    """A card as it can be checked before any work: whole but for what stands in our section.

    Attributes:
        text: the card.
        notes: on what the Hub may refuse.
        name: of the model, for the examples.
        base_model: Hub name of the unquantized model, if there is one.
        pictures: whether the export takes them.
    """

    text: str
    notes: list[str]
    name: str
    base_model: str | None
    pictures: bool = False


def begun_card(
    source: Source,
    *,
    name: str,
    base_model: str | None = None,
    pictures: bool = False,
    previous: str = "",
) -> BegunCard:
    """Begin the card of an export.

    Args:
        source: whose card hands on license, languages and tags.
        name: of the model, for the title of a new card.
        pictures: whether the export takes them.
        base_model: Hub name of the unquantized model; by default the source's, if it has one.
        previous: an earlier card of this export, whose text outside our section is kept.

    Raises:
        YoyoError: a card cannot be read, or the Hub would refuse the front matter.
    """
    base_model = base_model or source.repo
    changes = _inherited(source)
    given = cards.read_metadata(previous)
    tags = [*cards.listed(given.get("tags") or changes.get("tags")), "mlx"]
    task = changes.get("pipeline_tag", SEEING if pictures else READING)
    changes |= {
        "library_name": "mlx",
        "pipeline_tag": READING if task == SEEING and not pictures else task,
        "tags": list(dict.fromkeys(tags)),
    }
    changes = {key: value for key, value in changes.items() if key == "tags" or key not in given}
    if base_model:
        changes |= {"base_model": base_model, "base_model_relation": "quantized"}
    text = cards.update_metadata(previous or f"# {name}\n", changes)
    text = cards.write_section(text, SECTION, "")
    return BegunCard(text, cards.check_card(text), name, base_model, pictures)


def write_card(
    folder: Path,
    card: BegunCard,
    source: Source,
    plan: ExportPlan,
    verification: Verification | None,
    notes: list[str],
) -> None:
    """Write `README.md` into `folder`.

    Args:
        folder: the export.
        card: what `begun_card` made.
        source: whose merge configuration is shown.
        plan: what each module got.
        verification: what was compared, if anything.
        notes: what a person should know.
    """
    merge_yaml = source.folder / "mergekit_config.yml"
    packages = ("mlx-vlm" if card.pictures else "mlx-lm", *_PACKAGES)
    section = cards.render(
        "mlx/card.md.jinja",
        name=card.name,
        base_model=card.base_model,
        pictures=card.pictures,
        plan=plan,
        format_bytes=format_bytes,
        deckard=_deckard(plan.recipe),
        verification=verification,
        notes=notes,
        merge=merge_yaml.read_text("utf-8", "replace").strip() if merge_yaml.exists() else None,
        version=__version__,
        versions=", ".join(f"{name} {version(name)}" for name in packages),
    )
    text = cards.write_section(card.text, SECTION, section)
    (folder / "README.md").write_bytes(text.encode())


def _inherited(source: Source) -> dict[str, object]:
    metadata = cards.read_metadata(cards.read_card(source.folder / "README.md"))
    inherited: dict[str, object] = dict(
        cards.carry({source.repo or source.folder.name: metadata}).metadata
    )
    if metadata.get("tags"):
        inherited["tags"] = metadata["tags"]
    return inherited


def _deckard(recipe: Recipe) -> str:
    """What a recipe of two widths gives to which modules; nothing for others."""
    if recipe.bits_low == recipe.bits_high:
        return ""
    high = "embeddings, head and routers"
    if recipe.period:
        patterns = " ".join(f"`{pattern}`" for pattern in recipe.projections)
        chosen = "all" if recipe.projections == (".*",) else patterns
        which = ""
        if recipe.period > 1:
            which = f", once in {recipe.period} layers of a kind from number {recipe.offset},"
        high = f"embeddings, head, routers and{which} the attention projections ({chosen})"
    parts = [f"Data at {recipe.bits_low} bits", f"{high} at {recipe.bits_high} bits"]
    if recipe.first_layers:
        parts.append(f"the first {recipe.first_layers} layer(s) wholly so")
    parts += [
        f"modules `{pattern}` " + (f"at {bits} bits" if bits else "not quantized")
        for pattern, bits in recipe.modules.items()
    ]
    defaults = recipe.period in (1, 4) and (recipe.offset, recipe.projections) == (0, (".*",))
    chosen_by = "are mergekit-yoyo's own definition" if defaults else "were chosen for this export"
    return (
        f"{'; '.join(parts)}; groups of {recipe.group_size}. The idea is the published one of the "
        f"Deckard (qx) quantizations; these projections and layers {chosen_by}."
    )
