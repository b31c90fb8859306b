"""The tuned YAML: the user's own text with other values in it, comments and all."""

from typing import Any

import yaml

from mergekit_yoyo.tuning.knobs import Setting
from mergekit_yoyo.tuning.recipe import Recipe

MARK = "# mergekit-yoyo tune"


def tuned_text(recipe: Recipe, setting: Setting, remarks: list[str]) -> tuple[str, bool]:
    """The YAML with these values under a comment, and whether its own comments are kept.

    Values are put where the text has them, or beside their like; what cannot be edited so (aliases,
    unusual spelling) is written anew.
    """
    wanted = recipe.with_setting(setting)
    text, kept = recipe.merge_yaml.text, True
    if wanted != recipe.data:
        edited = _edited(text, recipe.data, wanted)
        kept = edited is not None
        text = edited or yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
    head = "\n".join([MARK, *(f"# {line}".rstrip() for line in remarks)])
    own = _without_head(text)
    return f"{head}\n\n{own}", kept


def _without_head(text: str) -> str:
    """A tuned YAML that is tuned again has one comment of ours, the last."""
    if not text.startswith(MARK):
        return text
    return text.partition("\n\n")[2]


def _edited(text: str, then: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """`text` so changed that it says what is wanted; None if that takes more than an edit."""
    if "\r" in text:
        return None
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    edits: list[tuple[int, int, str]] = []
    if "parameters" not in then and not node.flow_style:
        parameters = wanted.get("parameters")
        wanted_there = {key: value for key, value in wanted.items() if key != "parameters"}
        if parameters is not None:
            end = len(text.rstrip())
            edits.append((end, len(text), f"\nparameters: {_flow(parameters)}\n"))
    else:
        wanted_there = wanted
    if not _compare(node, then, wanted_there, edits):
        return None
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new + text[end:]
    try:
        return text if yaml.safe_load(text) == wanted else None
    except yaml.YAMLError:
        return None


def _compare(node: Any, then: Any, wanted: Any, edits: list[tuple[int, int, str]]) -> bool:
    """Collect the edits that make a node what is wanted; whether that can be done."""
    if then == wanted:
        return True
    if isinstance(then, dict) and isinstance(wanted, dict) and then.keys() <= wanted.keys():
        values = {key.value: value for key, value in node.value}
        for key in then:
            if key not in values or not _compare(values[key], then[key], wanted[key], edits):
                return False
        new = {key: wanted[key] for key in wanted if key not in then}
        return not new or _insert(node, new, edits)
    if isinstance(then, list) and isinstance(wanted, list) and len(then) == len(wanted):
        pairs = zip(node.value, then, wanted, strict=True)
        return all(_compare(inner, old, new, edits) for inner, old, new in pairs)
    if isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">"):
        edits.append((node.start_mark.index, node.end_mark.index, _flow(wanted)))
        return True
    return False


def _insert(node: Any, new: dict[str, Any], edits: list[tuple[int, int, str]]) -> bool:
    """New keys before the first of a mapping, in its own style."""
    if not node.value:
        return False
    first = node.value[0][0].start_mark
    if node.flow_style:
        text = "".join(f"{key}: {_flow(value)}, " for key, value in new.items())
    else:
        indent = "\n" + " " * first.column
        text = "".join(f"{key}: {_flow(value)}{indent}" for key, value in new.items())
        if "parameters" in new and len(node.value) and node.value[0][0].value == "model":
            # `- model: x` stays first
            last = node.value[0][1].end_mark.index
            text = "".join(f"{indent}{key}: {_flow(value)}" for key, value in new.items())
            edits.append((last, last, text))
            return True
    edits.append((first.index, first.index, text))
    return True


def _flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()
