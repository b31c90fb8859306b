"""The card of a finished merge: front matter from the inputs, and our section of the body.

The section's words stand in `card.md.jinja`.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergekit_yoyo import card as cards
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish.parts import parts_of
from mergekit_yoyo.finish.weighed import Weighed
from mergekit_yoyo.install import install_line
from mergekit_yoyo.model.donor import card_of
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.model.use import PROCESSOR_FILES, Use, fits, use_of

SECTION = "merge"
_PACKAGES = ("mergekit", "transformers", "torch")


@dataclass(frozen=True)
class Loaded:
    """What decides how the merge is loaded: its config.json, and whether it has a chat template
    and a processor of pictures or sound."""

    config: Mapping[str, Any]
    chat: bool
    processor: bool


def finished_card(
    present: str, name: str, merge_yaml: MergeYaml, weighed: Weighed, loaded: Loaded
) -> tuple[str, list[str]]:
    """The model card of a merge, and notes on what could not be said in it.

    The front matter keeps what the user wrote and gains what it lacks; in the body only our
    marked section is written. The body that mergekit writes says the same as that section and is
    replaced by it, if nobody changed it.

    Args:
        present: the card as it is, or an empty text.
        name: what the model will be called: title of a new card, name in its examples.
        merge_yaml: the merge YAML.
        weighed: what is known of each input from the record.
        loaded: what the example of its use follows from.

    Raises:
        YoyoError: the card as it is has front matter or markers that cannot be read.
    """
    metadata = cards.read_metadata(present)
    inputs, unread = _inputs_metadata(merge_yaml)
    carried = cards.carry(inputs)
    hub = list(dict.fromkeys(model.path for model in merge_yaml.inputs if model.on_hub))
    notes = [
        f"{path}: taken for a name on the Hub, though no card of it is at hand"
        for path in hub
        if inputs[path] is None and path not in unread
    ]
    notes += unread.values()
    # mergekit lists local folders with one slash as Hub names: only what is no input is the user's
    names = _listed(metadata.get("base_model"))
    bases = hub + [n for n in names if n not in inputs and n not in hub]
    tags = _listed(metadata.get("tags"))
    ours = ["mergekit", "merge"] + ["yoyo-fusion"] * (merge_yaml.method == "yoyo_fusion")
    changes: dict[str, Any] = {
        "base_model": bases or None,
        "base_model_relation": "merge" if bases else None,
        "library_name": metadata.get("library_name") or "transformers",
        "tags": tags + [tag for tag in ours if tag not in tags],
    }
    if "license" not in metadata:
        changes |= {k: v for k, v in carried.metadata.items() if k.startswith("license")}
    if "language" in carried.metadata and "language" not in metadata:
        changes["language"] = carried.metadata["language"]
    use, task, task_notes = _task(loaded, metadata, carried.metadata)
    if task and "pipeline_tag" not in metadata:
        changes["pipeline_tag"] = task
    notes += task_notes
    card = cards.update_metadata(_without_mergekits_body(present, merge_yaml, name), changes)
    section = _section(name, merge_yaml, carried.licenses, weighed, loaded, use)
    card = cards.write_section(card, SECTION, section)
    return card, notes + ([] if "license" in metadata else carried.notes)


def upload_command(folder: Path) -> str:
    """The line that publishes `folder`, with huggingface_hub's own command."""
    return f"hf upload YOUR-NAME/{folder.resolve().name} {shlex.quote(str(folder))} ."


def _section(
    name: str,
    merge_yaml: MergeYaml,
    licenses: Mapping[str, str | None],
    weighed: Weighed,
    loaded: Loaded,
    use: Use,
) -> str:
    models = []
    for model in merge_yaml.inputs:
        # A local folder is of no use to a reader, and its path may be nobody's business.
        shown = (
            f"[{model}](https://huggingface.co/{model})"
            if model.on_hub
            else f"`{Path(model.path).name}` (local)"
        )
        models.append(
            {
                "shown": shown + (" (base)" if model == merge_yaml.base else ""),
                "license": licenses[str(model)] or "not stated",
                "values": [values.get(str(model)) for values in weighed.values()],
            }
        )
    title, url, parameters = _method(merge_yaml.method)
    parts = {
        option: parts_of(merge_yaml.config, option, default)
        for option, default in parameters.items()
    }
    used = {
        option: list(dict.fromkeys(value for part in found for value in part.values))
        for option, found in parts.items()
    }
    options = {k: found for k, found in parts.items() if used[k] != [parameters[k]]}
    return cards.render(
        "finish/card.md.jinja",
        name=name,
        title=title,
        url=url,
        used=used,
        models=models,
        quantities=list(weighed),
        options=options,
        several=any(len(found) > 1 for found in options.values()),
        gradients=any(len(part.values) > 1 for found in options.values() for part in found),
        yaml=merge_yaml.text.strip(),
        versions=" ".join(f"{p}=={version(p).split('+')[0]}" for p in _PACKAGES),
        install=install_line(),
        use=use,
        example=use.loader if loaded.processor or not use.beyond_text else "AutoModelForCausalLM",
        chat=loaded.chat,
        processor=loaded.processor,
    )


def _task(
    loaded: Loaded, metadata: Mapping[str, Any], carried: Mapping[str, Any]
) -> tuple[Use, str | None, list[str]]:
    """What the merge is for, its pipeline_tag, and notes where a card says otherwise."""
    stated = metadata.get("pipeline_tag") or carried.get("pipeline_tag")
    use = use_of(loaded.config, stated)
    notes = []
    if use.beyond_text and not loaded.processor:
        notes.append(
            f"model card: its example is of text alone: there is no {PROCESSOR_FILES[0]}, without "
            "which nobody can give the model pictures or sound"
        )
    if stated and not fits(use, stated):
        is_kept = "pipeline_tag" in metadata
        notes.append(
            f"model card: pipeline_tag {stated} of the {'card' if is_kept else 'inputs'} is not "
            f"what transformers does with {use.loader}, {use.task}: "
            f"{'kept, since the card is yours' if is_kept else f'{use.task} is set'}"
        )
        stated = use.task
    return use, stated or use.task, notes


def _method(name: str) -> tuple[str, str, dict[str, Any]]:
    """From mergekit's registry: a method's title, its reference and, if it is ours, its options
    with their defaults."""
    from mergekit import merge_methods

    try:
        spec = merge_methods.get(name).spec
    except RuntimeError:  # a method of a plugin that is not installed here
        return name, "", {}
    ours = {p.name: p.default for p in spec.shared_parameters if p.name != "report"}
    options = ours if name == "yoyo_fusion" else {}
    return spec.pretty_name or name, (spec.reference_url or "").strip(), options


def _inputs_metadata(
    merge_yaml: MergeYaml,
) -> tuple[dict[str, dict[str, Any] | None], dict[str, str]]:
    """The front matter of each input's card, None where none is at hand; why one cannot be read."""
    found: dict[str, dict[str, Any] | None] = {}
    unread = {}
    for model in merge_yaml.inputs:
        name = str(model)
        try:
            card = card_of(model)
            found[name] = None if card is None else cards.read_metadata(card)
        except YoyoError as error:  # the broken card of an input is not the user's to mend
            found[name], unread[name] = None, f"{name}: its card is taken for none: {error}"
    return found, unread


def _without_mergekits_body(card: str, merge_yaml: MergeYaml, name: str) -> str:
    """`card` with only front matter and a title, if its body is mergekit's, unchanged, or none."""
    from mergekit.card import CARD_TEMPLATE

    one_line, bullets = r"[^\n]*", r"(?:\* [^\n]*(?:\n|$))*(?:\* [^\n]*)?"
    fields = {
        "metadata": r"[\s\S]*?",
        "name": one_line,
        "merge_method": one_line,
        "base_text": one_line,
        "model_list": bullets,
        "config_yaml": re.escape(merge_yaml.text),
    }
    pattern = re.escape(CARD_TEMPLATE)
    for field, value in fields.items():
        pattern = pattern.replace(re.escape(f"{{{field}}}"), f"(?P<{field}>{value})")
    match = re.fullmatch(pattern, card)
    return f"---\n{match['metadata']}\n---\n# {name}\n" if match else card or f"# {name}\n"


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []
