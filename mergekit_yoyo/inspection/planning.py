"""The merge as mergekit itself plans it, and what its plan would do without a word.

mergekit's planner runs on the inputs as they lie on disk (or on their headers, for models that are
not downloaded yet). What it refuses is an error here. What it accepts is held against the headers:
tensors that are missing, shapes that differ, heads and norms made of fewer models than the rest.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit.architecture import get_architecture_info
from mergekit.common import ModelReference, dtype_from_name
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.io.tasks import SaveTensor
from mergekit.merge import _model_out_config
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from pydantic import BaseModel, ValidationError

from mergekit_yoyo.errors import YoyoError, explain_invalid
from mergekit_yoyo.inspection.inputs import Input
from mergekit_yoyo.inspection.located import Located
from mergekit_yoyo.inspection.modules import as_modules
from mergekit_yoyo.inspection.remark import Remark, error, some, warning
from mergekit_yoyo.inspection.settings import filters_of, settings_of
from mergekit_yoyo.method.idle_options import idle_options
from mergekit_yoyo.method.plan_checks import check_all_models_gathered
from mergekit_yoyo.method.refusal import MergeError
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.planning import (
    gathered_weights,
    lost_in,
    merged_dtype,
    notes_on,
    reader_of,
    refusal,
    watching,
)

REFUSED = "mergekit refuses the merge: "


@dataclass(frozen=True)
class MergePlan:
    """mergekit's plan: the task of each tensor, and all targets that a run would execute.

    settings: the transformers config that would be saved. loaded: what a task's model hands over
    for a weight; None where only its name is known. said: what is lost, copied or left out.
    """

    config: MergeConfiguration
    settings: Any
    tasks: list[ExecuteMergeMethodTask]
    targets: list[Task]
    loaded: dict[tuple[ModelReference, str], TensorInfo | None]
    said: list[Remark]

    def inputs_of(self, task: ExecuteMergeMethodTask) -> dict[ModelReference, TensorInfo | None]:
        """The tensors that a task gets, by model, in the merge's order."""
        weights = gathered_weights(task) or {}
        return {
            model: self.loaded[model, weights[model].name]
            for model in task.model_order
            if model in weights and (model, weights[model].name) in self.loaded
        }

    def output_of(self, task: ExecuteMergeMethodTask) -> TensorInfo | None:
        """Shape and dtype of what is saved, as far as headers tell."""
        infos = [info for info in self.inputs_of(task).values() if info is not None]
        if not infos:
            return None
        saved = dtype_from_name(task.output_weight.force_dtype or self.config.out_dtype)
        return TensorInfo(max(info.shape for info in infos), saved or merged_dtype(task, infos))


def plan_merge(
    merge_yaml: MergeYaml,
    inputs: Sequence[Input],
    models: Mapping[ModelReference, Located],
    options: MergeOptions,
) -> MergePlan:
    """Let mergekit plan the merge; no tensor is read and nothing is written.

    Raises:
        YoyoError: mergekit refuses the merge, with its reason.
    """
    config: MergeConfiguration = _with_models(merge_yaml.config, models)
    try:
        for name in (config.dtype, config.out_dtype):
            dtype_from_name(name)  # which mergekit asks when it reads the first tensor
        architecture = get_architecture_info(config, options)
        settings = _model_out_config(config, architecture)
        planner = MergePlanner(config, architecture, options, settings)
        with watching(config.merge_method):
            targets = planner.plan_to_disk("unwritten")
    except ValidationError as wrong:
        raise YoyoError(REFUSED + explain_invalid(wrong, None)) from None
    except Exception as wrong:  # of any kind: methods and architectures have their own checks
        if "must use modules:" in str(wrong):
            written = as_modules(merge_yaml, architecture, settings)
            wrong = YoyoError(f"{wrong}. In place of `slices:`, write\n\n{written}")
        raise YoyoError(f"{REFUSED}{wrong}") from None
    tasks = [target.tensor_task for target in targets if isinstance(target, SaveTensor)]
    folders = {item.folder: item for item in inputs}
    loaded = {}
    for task in tasks:
        for model, weight in (gathered_weights(task) or {}).items():
            found, info = reader_of(model).loads(weight, folders[model.folder].tensors.get)
            if found:
                loaded[model, weight.name] = info
    lost = lost_in(planner)
    said = [error(refusal(lost, "watches"))] if lost.lost else []
    said += [warning(note) for note in notes_on(planner)]
    return MergePlan(config, settings, tasks, targets, loaded, said)


def check_plan(plan: MergePlan) -> list[Remark]:
    """What the plan would do wrong, or die of while it runs."""
    missing: dict[str, list[str]] = {}
    shapes = []
    vocabulary = False
    for task in plan.tasks:
        if task.method_name != "yoyo_fusion":  # which refuses this itself
            try:
                check_all_models_gathered(task)
            except MergeError as wrong:
                return [error(str(wrong))]
        for model, weight in (gathered_weights(task) or {}).items():
            if (model, weight.name) not in plan.loaded and not weight.optional:
                missing.setdefault(str(model), []).append(weight.name)
        infos = {model: info for model, info in plan.inputs_of(task).items() if info is not None}
        axis = task.output_weight.vocabulary_axis
        built = plan.config.tokenizer or plan.config.tokenizer_source
        kinds = {_without(info.shape, axis if built else None) for info in infos.values()}
        if len(kinds) > 1:
            named = ", ".join(f"{list(info.shape)} in {model}" for model, info in infos.items())
            shapes.append(f"{task.output_weight.name} is {named}")
            vocabulary |= axis is not None
    remarks = plan.said + [
        error(f"{model}: lacks {some(names)}, which the merge needs")
        for model, names in missing.items()
    ]
    if shapes:
        hint = " For the vocabulary, add `tokenizer: {source: union}`." if vocabulary else ""
        remarks.append(error(f"shapes differ: {some(shapes)}.{hint}"))
    try:
        plan.settings.validate()
    except Exception as wrong:  # validators of many kinds
        reason = str(wrong).splitlines()[-1].strip()
        remarks.append(
            error(
                f"config.json of the merge: {reason}: mergekit dies after the weights. "
                "`mergekit-yoyo finish --config` rescues such a merge."
            )
        )
    return remarks


def check_effects(plan: MergePlan) -> list[Remark]:
    """Options of our method that are set and do nothing in some tensors."""
    counts = Counter(
        sentence
        for task in plan.tasks
        if task.method_name == "yoyo_fusion"
        for sentence in idle_options(task, filter(None, plan.inputs_of(task).values()))
    )
    return [
        warning(f"{sentence} ({count:,} of {len(plan.tasks):,} tensors)")
        for sentence, count in counts.items()
    ]


def check_filters(merge_yaml: MergeYaml, plan: MergePlan) -> list[Remark]:
    """Filters that match no tensor of the merge."""
    names = {weight.name for t in plan.tasks for weight in (gathered_weights(t) or {}).values()}
    names |= {task.output_weight.name for task in plan.tasks}
    return [
        warning(f"{place}: {name}: the filter {text} matches no tensor of this merge")
        for place, _, name, value in settings_of(merge_yaml.config)
        for text in filters_of(value)
        if text != "*" and not any(text in tensor for tensor in names)
    ]


def _with_models(value: Any, models: Mapping[ModelReference, Located]) -> Any:
    """A part of mergekit's configuration, with its models replaced."""
    if isinstance(value, ModelReference):
        return models.get(value, value)
    if isinstance(value, BaseModel):
        fields = {name: _with_models(getattr(value, name), models) for name in _fields(value)}
        return value.model_copy(update=fields)
    if isinstance(value, dict):
        return {key: _with_models(item, models) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_models(item, models) for item in value]
    return value


def _fields(value: BaseModel) -> list[str]:
    return list(type(value).model_fields)


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]
