"""Where other ways of merging the same models stand: what a strength is seen beside."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mergekit_yoyo.model.merge_yaml import read_merge_yaml
from mergekit_yoyo.tuning.recipe import Recipe

FACTORS = (0.3, 0.5, 0.7, 0.9, 1.1)  # of task arithmetic; the best of them is shown
# What of a YAML is not the method's.
_KEPT = ("base_model", "dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template")


def landmarks(recipe: Recipe, folder: Path) -> Iterator[tuple[str, Recipe]]:
    """Other merges of the same models by their names: linear, tukey, recall and task arithmetic.

    None of a merge of slices, which no other method arranges alike. The base of task arithmetic is
    the YAML's; without one there is no task arithmetic.

    folder: where their YAMLs are written.
    """
    names = recipe.models
    base = recipe.base
    others = [name for name in names if name != base]
    if len(names) < 2:
        return
    # a base that is but the donor of config and tokenizer, or the one of two, is merged as others
    is_input = base in names and recipe.takes_base and not recipe.anchored
    inputs = names if is_input or len(others) < 2 else others
    kept = {key: recipe.data[key] for key in _KEPT if key in recipe.data}
    found: dict[str, dict[str, Any]] = {
        "linear": _merge("linear", inputs, {"weight": 1.0}),
        "tukey": _merge("yoyo_fusion", inputs, {"consensus": "tukey"}),
    }
    if len(inputs) > 2:
        found["recall"] = _merge("yoyo_fusion", inputs, {"consensus": "recall"})
    if base and len(others) > 1:
        anchored = {"consensus": "recall", "center": "anchor"}
        found["recall, base as anchor"] = _merge("yoyo_fusion", [*others, base], anchored)
        found["task_arithmetic"] = _merge("task_arithmetic", others, {"weight": 1.0, "lambda": 1.0})
    for label, method in found.items():
        data = {**kept, **method}
        if "base_model" in data and label in ("linear", "tukey", "recall"):
            data.pop("base_model")  # under `models:` it would be added to the inputs
        file = folder / f"{label.replace(', ', '-').replace(' ', '-')}.yml"
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        yield label, Recipe(file, read_merge_yaml(file))


def _merge(method: str, models: list[str], parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "merge_method": method,
        "models": [{"model": name} for name in models],
        "parameters": parameters,
    }
