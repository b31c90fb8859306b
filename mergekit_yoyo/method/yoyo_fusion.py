"""The mergekit method: one tensor group in, `fuse` called, one tensor out.

What can be refused is refused while mergekit plans, before a tensor is read (`plan_checks`).
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from mergekit.merge_methods.base import (
    BasePolicy,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    OptionalTensorPolicy,
    TensorGroup,
)
from torch import Tensor

from mergekit_yoyo.algorithm import fuse
from mergekit_yoyo.algorithm.inputs import counted
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.method.expert_layout import packing_of
from mergekit_yoyo.method.module_kind import kind_of
from mergekit_yoyo.method.parameters import PARAMETERS
from mergekit_yoyo.method.plan_checks import check_model_files, check_task
from mergekit_yoyo.method.refusal import MergeError, refusals
from mergekit_yoyo.record import recorder
from mergekit_yoyo.record.lines import tensor_line
from mergekit_yoyo.record.schema import TensorLine


class YoyoFusion(GroupMergeMethod):  # type: ignore[misc]  # mergekit is not typed
    """`merge_method: yoyo_fusion`.

    base_model is one of the inputs, and with `center: anchor` the center. Its policy is IGNORED so
    that a slice may do without it: mergekit's OPTIONAL would refuse such a slice.
    """

    spec = MergeMethodSpec(
        name="yoyo_fusion",
        parameters=PARAMETERS,
        contract=InputContract(base=BasePolicy.IGNORED, min_inputs=1),
        pretty_name="YOYO-Fusion",
        reference_url="https://huggingface.co/YOYO-AI",
        optional_tensor_policy=OptionalTensorPolicy.PASSTHROUGH_SINGLETON,
    )

    def validate_inputs(
        self,
        input_ids: Sequence[Hashable],
        base_id: Hashable | None = None,
        *,
        group_name: str | None = None,
    ) -> None:
        """mergekit's check of a slice or tensor, while planning and again before merging it.

        What needs more than ids is checked by `check_task` when the plan is made.

        Raises MergeError for inputs that are quantized.
        """
        super().validate_inputs(input_ids, base_id, group_name=group_name)
        with refusals():
            check_model_files(input_ids)

    def merge_group(self, group: TensorGroup, /, **parameters: Any) -> Tensor:
        """Merge one tensor. `parameters` are those of `PARAMETERS`, validated.

        Raises MergeError for inputs that cannot be merged, naming tensor and model.
        """
        with refusals():
            return self._merge(group, **parameters)

    def describe_group(self, group: TensorGroup, /, **parameters: Any) -> TensorLine:
        """What `merge_group` would write to the record of the merge, without merging or writing.

        Raises MergeError as `merge_group` does.
        """
        parameters.pop("report", None)
        with refusals():
            return self._fuse(group, parameters, dry_run=True)[1]()

    def _merge(self, group: TensorGroup, *, report: str | None = None, **parameters: Any) -> Tensor:
        merged, line = self._fuse(group, parameters)
        if report:
            recorder.write(report, line())
        return merged

    def _fuse(
        self, group: TensorGroup, parameters: dict[str, Any], *, dry_run: bool = False
    ) -> tuple[Tensor, Callable[[], TensorLine]]:
        """The merge, and what makes its line of the record, which may wait for the device."""
        name = group.metadata.name or "tensor"
        options = dict(parameters)
        given = options.pop("weight", None) or {}
        # those that are left out are not in the record either; if it were all, `fuse` refuses
        base = next((k for k, entry in enumerate(group.entries) if entry.is_base), None)
        kept = counted(
            [given.get(entry.id, 1.0) for entry in group.entries],
            base if options["center"] == "anchor" else None,
        )
        entries = [group.entries[k] for k in kept] or list(group.entries)
        labels = [f"input {e.id}" if isinstance(e.id, int) else str(e.id) for e in entries]
        shared = {key: value for key, value in parameters.items() if key != "weight"}
        of_vocabulary = group.metadata.vocabulary_axis is not None
        packing = packing_of(group, options.pop("experts"))
        if options["consensus"] == "recall":
            options["kind"], packing = kind_of(group, packing)
        elif of_vocabulary:
            options["kind"] = "embedding"  # or the head
        base = next((k for k, entry in enumerate(entries) if entry.is_base), None)
        anchor = None
        if options["center"] == "anchor" and len(labels) == 1:
            options["center"] = "geometric_median"  # of one input: itself
        elif options["center"] == "anchor":
            anchor = base
            if anchor is None:
                raise YoyoError(
                    f"{name}: center: anchor needs the base model among the inputs, and it is not: "
                    f"{', '.join(labels)}. Set base_model, or another center for this tensor."
                )
        result = fuse(
            [entry.tensor for entry in entries],
            weights=[given.get(entry.id, 1.0) for entry in entries],
            anchor=anchor,
            base=base,
            experts=packing,
            name=name,
            # embedding and head may be one tensor, stored twice
            seed="vocabulary" if of_vocabulary else None,
            labels=labels,
            dry_run=dry_run,
            **options,
        )
        return result.tensor, lambda: tensor_line(
            name, result.tensor, result, inputs=labels, parameters=shared, anchor=anchor
        )


METHOD = YoyoFusion()


def repair_plans() -> None:
    """Make mergekit plan merges by this method whole. Harmless if it does already."""
    from mergekit_yoyo.planning import install

    install(MergeError, check_task)


def register() -> None:
    """Make mergekit know the method. Harmless if it does already."""
    from mergekit.merge_methods import registry

    if METHOD.spec.name not in {method.spec.name for method in registry.registered_methods()}:
        registry.register(METHOD)
