"""The card of an mlx export: front matter that the Hub accepts, the recipe table, how to use it."""

from importlib.metadata import version
from pathlib import Path

from mergekit_yoyo import __version__
from mergekit_yoyo.card import (
    carry,
    check_card,
    listed,
    read_card,
    read_metadata,
    update_metadata,
    write_section,
)
from mergekit_yoyo.mlx.plan import Plan
from mergekit_yoyo.mlx.recipes import Recipe
from mergekit_yoyo.mlx.source import Source
from mergekit_yoyo.mlx.verify import Verification
from mergekit_yoyo.staging import format_bytes

SECTION = "mlx"


def begun_card(
    source: Source, *, name: str, base_model: str | None, previous: str = ""
) -> tuple[str, list[str]]:
    """The card as it can be checked before any work: whole but for what stands in our section.

    With it, notes on what the Hub may refuse.

    Args:
        source: whose card hands on license, languages and tags.
        name: of the model, for the title of a new card.
        base_model: Hub name of the unquantized model, if there is one.
        previous: an earlier card of this export, whose text outside our section is kept.

    Raises:
        YoyoError: a card cannot be read, or the Hub would refuse the front matter.
    """
    card = previous or f"# {name}\n"
    changes = _inherited(source)
    given = read_metadata(previous)
    tags = [*listed(given.get("tags") or changes.get("tags")), "mlx"]
    changes |= {
        "library_name": "mlx",
        "pipeline_tag": changes.get("pipeline_tag", "text-generation"),
        "tags": list(dict.fromkeys(tags)),
    }
    changes = {key: value for key, value in changes.items() if key == "tags" or key not in given}
    if base_model:
        changes |= {"base_model": base_model, "base_model_relation": "quantized"}
    card = write_section(update_metadata(card, changes), SECTION, "")
    return card, check_card(card)


def write_card(
    folder: Path,
    begun: str,
    source: Source,
    plan: Plan,
    verification: Verification | None,
    notes: list[str],
    *,
    name: str,
    base_model: str | None,
) -> None:
    """Write `README.md` into `folder`.

    Args:
        folder: the export.
        begun: what `begun_card` made.
        source: whose merge configuration is shown.
        plan: what each module got.
        verification: what was compared, if anything.
        notes: what a person should know.
        name: of the model, for the examples.
        base_model: Hub name of the unquantized model, if there is one.
    """
    body = _body(source, plan, verification, notes, name, base_model)
    (folder / "README.md").write_bytes(write_section(begun, SECTION, body).encode())


def recipe_table(plan: Plan) -> str:
    """The plan as a Markdown table, totals in the last row."""
    lines = [
        "| modules | bits | group size | count | parameters | size |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for kind, bits, group, count, parameters, size in plan.rows():
        lines.append(
            f"| {kind} | {bits} | {group} | {count} | {parameters:,} | {format_bytes(size)} |"
        )
    lines.append(
        f"| **all** | **{plan.bits_per_weight:.2f} per weight** | | {len(plan.placements)} | "
        f"{plan.parameters:,} | {format_bytes(plan.bytes)} |"
    )
    return "\n".join(lines)


def _inherited(source: Source) -> dict[str, object]:
    metadata = read_metadata(read_card(source.folder / "README.md"))
    inherited: dict[str, object] = dict(
        carry({source.repo or source.folder.name: metadata}).metadata
    )
    if metadata.get("tags"):
        inherited["tags"] = metadata["tags"]
    return inherited


def _body(
    source: Source,
    plan: Plan,
    verification: Verification | None,
    notes: list[str],
    name: str,
    base_model: str | None,
) -> str:
    config = source.folder / "mergekit_config.yml"
    origin = "a merge" if config.exists() else "a local checkpoint"
    if base_model:
        origin = f"[{base_model}](https://huggingface.co/{base_model})"
    parts = [
        f"MLX conversion of {origin}, recipe `{plan.recipe.name}`.",
        "## Recipe",
        recipe_table(plan),
    ]
    if plan.recipe.bits_low != plan.recipe.bits_high:
        parts.append(_deckard(plan.recipe))
    if verification:
        drift = verification.drift
        parts.append(
            "Before quantization the logits differ from transformers' by at most "
            f"{verification.graph_difference:.1e} of their standard deviation (float32). As "
            f"written, on the same few prompts: {drift.top1_agreement:.1%} of next tokens agree, "
            f"KL divergence {drift.kl:.2g} nats per token, largest difference "
            f"{drift.max_difference:.2g} standard deviations."
        )
    if notes:
        parts.append("Notes:\n\n" + "\n".join(f"- {note}" for note in notes))
    parts += ["## Use", _usage(name)]
    if config.exists():
        text = config.read_text(encoding="utf-8", errors="replace").strip()
        parts += ["## Merge configuration", f"```yaml\n{text}\n```"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("mlx-lm", "mlx", "transformers"))
    parts.append(f"Made with mergekit-yoyo {__version__} ({versions}).")
    return "\n\n".join(parts)


def _deckard(recipe: Recipe) -> str:
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


def _usage(name: str) -> str:
    return f"""```bash
pip install mlx-lm
mlx_lm.generate --model {name} --prompt "Hello" --max-tokens 100
mlx_lm.server --model {name} --port 8080
```

```python
from mlx_lm import generate, load

model, tokenizer = load("{name}")
prompt = "Hello"
if tokenizer.chat_template is not None:
    messages = [{{"role": "user", "content": prompt}}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
print(generate(model, tokenizer, prompt=prompt, max_tokens=100))
```

LM Studio: put this folder into `~/.lmstudio/models/<owner>/{name}` (or search for the repo in the
app once it is on the Hub) and load it with the MLX engine."""
