"""The look before a merge, in the order in which things can go wrong. Nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit.options import MergeOptions

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.inspection.fit import (
    check_architectures,
    check_configs,
    check_dtypes,
    check_heads,
    check_predictions,
    check_tensor_names,
    donor_remark,
)
from mergekit_yoyo.inspection.inputs import Input, find_inputs
from mergekit_yoyo.inspection.located import Located, check_quantized, download, located, quiet
from mergekit_yoyo.inspection.outliers import check_looks
from mergekit_yoyo.inspection.planning import (
    REFUSED,
    MergePlan,
    check_effects,
    check_filters,
    check_plan,
    plan_merge,
)
from mergekit_yoyo.inspection.remark import Level, Remark, error
from mergekit_yoyo.inspection.resources import check_disk, check_memory
from mergekit_yoyo.inspection.settings import check_settings, method_of
from mergekit_yoyo.inspection.vocabulary import check_templates, check_tokenizers
from mergekit_yoyo.inspection.weights import Look, look_at_weights
from mergekit_yoyo.model.merge_yaml import MergeYaml, read_merge_yaml, references
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.record.statistics import TensorStatistics, statistics_of

if TYPE_CHECKING:
    from mergekit.common import ModelReference


@dataclass(frozen=True)
class Reading:
    """The weights: what was seen of each tensor, and the statistics where several models meet."""

    looks: list[Look]
    tensors: list[TensorStatistics]


@dataclass
class Inspection:
    """What was found.

    options: mergekit's, with which the merge will be run. plan, reading: None if mergekit made no
    plan, or no weights were read. called: what paths are called in what is said, where the YAML has
    another name for them.
    """

    merge_yaml: MergeYaml
    options: MergeOptions
    inputs: list[Input] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    plan: MergePlan | None = None
    reading: Reading | None = None
    called: dict[str, str] = field(default_factory=dict)

    def of_level(self, level: Level) -> list[str]:
        """The remarks of a level, each once."""
        found = dict.fromkeys(text for kind, text in self.remarks if kind == level)
        return [self.in_its_words(text) for text in found]

    def in_its_words(self, text: str) -> str:
        """A text with models named as the YAML names them."""
        for path, name in self.called.items():
            text = text.replace(path, name)
        return text

    @property
    def failed(self) -> bool:
        """Whether the merge would fail, or not be what the YAML says."""
        return bool(self.of_level("error"))


def inspect(
    file: Path,
    *,
    quick: bool = False,
    output: Path = Path(),
    options: MergeOptions | None = None,
    progress: Progress = SILENT,
) -> Inspection:
    """Look at a merge before it is run.

    Args:
        file: the merge YAML, for mergekit-yaml.
        quick: stop before the weights, and download only small files.
        output: where the merge would be written: whose disk is asked for space.
        options: mergekit's, with which the merge will be run.
        progress: told of the tensors read.

    Raises:
        YoyoError: the file cannot be read, or is no merge YAML.
    """
    return inspect_merge(
        read_merge_yaml(file), quick=quick, output=output, options=options, progress=progress
    )


def inspect_merge(
    merge_yaml: MergeYaml,
    *,
    quick: bool,
    output: Path,
    options: MergeOptions | None = None,
    progress: Progress,
) -> Inspection:
    """Look at a merge whose YAML was read, as `inspect` does."""
    seen = Inspection(merge_yaml, options or MergeOptions())
    with quiet():
        seen.remarks += check_settings(merge_yaml)
        seen.inputs, found = find_inputs(merge_yaml)
        seen.remarks += found
        if len(seen.inputs) < len(references(merge_yaml.config)):
            return seen
        with located(seen.inputs, seen.options) as models:
            if _check_inputs(seen, models):
                _check_merge(seen, models, output)
            adapters = any(item.reference.lora for item in seen.inputs)
            if seen.plan and not (quick or adapters or seen.failed):
                _read_weights(seen, seen.plan, models, progress)
    return seen


def _check_inputs(seen: Inspection, models: Mapping["ModelReference", Located]) -> bool:
    """Compare the models; gives whether it makes sense to plan their merge."""
    merge_yaml, inputs = seen.merge_yaml, seen.inputs
    unfit = check_quantized(models.values()) or check_architectures(inputs, merge_yaml)
    seen.remarks += unfit
    if unfit:
        return False
    configs = check_configs(inputs)
    tokens = check_tokenizers(inputs, merge_yaml) + check_templates(inputs, merge_yaml)
    seen.remarks += configs + check_dtypes(inputs, merge_yaml) + check_heads(inputs, merge_yaml)
    seen.remarks += check_tensor_names(inputs) + check_predictions(inputs) + tokens
    seen.remarks.append(donor_remark(merge_yaml, bool(configs or tokens)))
    return method_of(merge_yaml) is not None


def _check_merge(
    seen: Inspection, models: Mapping["ModelReference", Located], output: Path
) -> None:
    """Let mergekit plan, and look at the plan. What we know of its refusal is not said again."""
    try:
        seen.plan = plan_merge(seen.merge_yaml, seen.inputs, models, seen.options)
    except YoyoError as wrong:
        reason = str(wrong).removeprefix(REFUSED)
        if not any(reason in text for text in seen.of_level("error")):
            seen.remarks.append(error(str(wrong)))
        return
    seen.remarks += (
        check_plan(seen.plan) + check_effects(seen.plan) + check_filters(seen.merge_yaml, seen.plan)
    )
    seen.remarks += check_disk(seen.plan, seen.inputs, output) + check_memory(seen.plan)


def _read_weights(
    seen: Inspection,
    plan: MergePlan,
    models: Mapping["ModelReference", Located],
    progress: Progress,
) -> None:
    try:
        download(seen.inputs, models)
    except YoyoError as wrong:
        seen.remarks.append(error(str(wrong)))
        return
    looks = []
    progress.begin("Reading weights", len(plan.tasks))
    for look in look_at_weights(plan):
        looks.append(look)
        progress.advance()
    names = [str(item) for item in seen.inputs]
    lines = [look.line for look in looks if look.line is not None and look.line.weights]
    tensors = statistics_of(lines, names)
    seen.reading = Reading(looks, tensors)
    ours = seen.merge_yaml.method == "yoyo_fusion"
    seen.remarks += check_looks(looks, tensors, names, ours=ours)
