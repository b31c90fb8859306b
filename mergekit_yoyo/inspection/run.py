"""The look before a merge, in the order in which things can go wrong. Nothing is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish.recipe import Recipe, read_recipe, references
from mergekit_yoyo.inspection.fit import (
    check_architectures,
    check_configs,
    check_dtypes,
    check_heads,
    check_tensor_names,
    donor_remark,
)
from mergekit_yoyo.inspection.inputs import Input, find_inputs
from mergekit_yoyo.inspection.planning import (
    REFUSED,
    Plan,
    check_filters,
    check_plan,
    check_quantized,
    locate_models,
    plan_merge,
    quiet,
)
from mergekit_yoyo.inspection.remark import Level, Remark, error
from mergekit_yoyo.inspection.resources import check_disk, check_memory
from mergekit_yoyo.inspection.settings import check_settings, method_of
from mergekit_yoyo.inspection.vocabulary import check_templates, check_tokenizers


@dataclass
class Inspection:
    """What was found. reading: of the weights, None if they were not read."""

    recipe: Recipe
    inputs: list[Input] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    plan: Plan | None = None
    reading: None = None

    def of_level(self, level: Level) -> list[str]:
        """The remarks of a level, each once."""
        return list(dict.fromkeys(text for kind, text in self.remarks if kind == level))

    @property
    def failed(self) -> bool:
        """Whether the merge would fail, or not be what the YAML says."""
        return bool(self.of_level("error"))


def inspect(
    file: Path,
    *,
    quick: bool = False,
    output: Path = Path(),
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Look at a merge before it is run.

    Args:
        file: the merge YAML, for mergekit-yaml.
        quick: stop before the weights, and download only small files.
        output: where the merge would be written: whose disk is asked for space.
        progress: called with the number of tensors read, and of all.

    Raises:
        YoyoError: the file cannot be read, or is no merge YAML.
    """
    recipe = read_recipe(file)
    seen = Inspection(recipe)
    with quiet():
        seen.remarks += check_settings(recipe)
        seen.inputs, found = find_inputs(recipe)
        seen.remarks += found
        if len(seen.inputs) == len(references(recipe.config)):
            _look(seen, output)
    return seen


def _look(seen: Inspection, output: Path) -> None:
    recipe, inputs, remarks = seen.recipe, seen.inputs, seen.remarks
    models = locate_models(inputs)
    unfit = check_quantized(models.values()) or check_architectures(inputs, recipe)
    remarks += unfit
    if any(level == "error" for level, _ in unfit):
        return
    configs = check_configs(inputs)
    tokens = check_tokenizers(inputs, recipe) + check_templates(inputs, recipe)
    remarks += configs + check_dtypes(inputs, recipe) + check_heads(inputs, recipe)
    remarks += check_tensor_names(inputs) + tokens
    remarks.append(donor_remark(recipe, bool(configs or tokens)))
    if method_of(recipe) is None:
        return
    try:
        seen.plan = plan_merge(recipe, inputs, models)
    except YoyoError as wrong:
        reason = str(wrong).removeprefix(REFUSED)
        if not any(reason in text for text in seen.of_level("error")):
            remarks.append(error(str(wrong)))
        return
    remarks += check_plan(seen.plan) + check_filters(recipe, seen.plan)
    remarks += check_disk(seen.plan, inputs, output) + check_memory(seen.plan)
