"""Whether converted tensors are what the donor's checkpoint and the config say: no guesses."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish.config import parameter_name
from mergekit_yoyo.model.buffers import is_recomputed
from mergekit_yoyo.model.checkpoint import TensorInfo, main_dtype
from mergekit_yoyo.model.layout import LayoutPlan, plan_layout
from mergekit_yoyo.model.names import any_layer
from mergekit_yoyo.model.predictions import prediction_names

_SHOWN = 3
_MTP = " --without-mtp finishes it without its blocks for multi-token prediction."


def check_against_donor(
    plan: LayoutPlan, donor: Mapping[str, TensorInfo | None], donor_name: str
) -> None:
    """Refuse a conversion whose names or shapes are not the donor's, layer index aside.

    Rows of the vocabulary may differ, and a head that the merge untied may be new.

    Raises:
        YoyoError: names the tensors that differ, with what the donor has.
    """
    shapes: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for name, info in donor.items():
        shapes[any_layer(name)] |= set() if info is None else {info.shape}
    head = parameter_name(plan.model, plan.model.get_output_embeddings())
    embedding = parameter_name(plan.model, plan.model.get_input_embeddings())
    strange, misshapen = [], []
    for name, info in plan.targets.items():
        known = shapes.get(any_layer(name))
        if known is None and name != head:
            strange.append(name)
        elif known:
            first = 1 if name in (head, embedding) else 0  # 1: without the rows of the vocabulary
            if info.shape[first:] not in {shape[first:] for shape in known}:
                misshapen.append(f"{name} {list(info.shape)} (donor: {list(min(known))})")
    if strange or misshapen:
        raise _another(
            donor_name, "architecture or layout", strange, _absent(plan.targets, donor), misshapen
        )


def check_model_type(
    merged: Mapping[str, Any],
    tensors: Collection[str],
    donor_config: Mapping[str, Any],
    donor: Collection[str],
    donor_name: str,
) -> None:
    """Refuse a donor whose config.json is of another model type than the merge's.

    Raises:
        YoyoError: names both types and the tensors that differ.
    """
    ours, theirs = merged.get("model_type"), donor_config.get("model_type")
    if ours != theirs:
        kind = f"model type ({theirs}; merge: {ours})"
        raise _another(donor_name, kind, _absent(donor, tensors), _absent(tensors, donor), [])


def _absent(known: Iterable[str], names: Iterable[str]) -> list[str]:
    """Those of `names` that `known` has in no layer."""
    layers = {any_layer(name) for name in known}
    return [name for name in names if any_layer(name) not in layers]


def _another(
    donor: str, what: str, strange: list[str], absent: list[str], misshapen: list[str]
) -> YoyoError:
    parts = [
        text.format(_some(names))
        for text, names in [
            ("{}, which the donor has not", strange),
            ("the donor's {}, which the merge has not", absent if strange else []),
            ("shapes: {}", misshapen),
        ]
        if names
    ]
    return YoyoError(
        f"donor {donor}: its checkpoint is of another {what} than the merge. Tensors that differ: "
        f"{'; '.join(parts) or 'none by name'}. Name the right one with --donor."
    )


def check_complete(
    plan: LayoutPlan,
    donor: Collection[str],
    stored: Collection[str],
    layers: Sequence[int] | None,
    without_mtp: bool = False,
) -> None:
    """Refuse a merge that lacks tensors which its config asks for or its donor has, or has more.

    Tensors that the config does not ask for are accepted where the donor has them too.

    Args:
        plan: the merge in its original layout.
        donor: the donor's tensors.
        stored: the merge's tensors as they are.
        layers: the donor's layer of each layer, if the YAML arranges them.
        without_mtp: blocks for multi-token prediction may be missing.

    Raises:
        YoyoError: names the tensors that are missing, left over or of another shape.
    """
    model = plan.model
    model.tie_weights()
    state = model.state_dict(keep_vars=True)
    asked = plan_layout(
        model.config,
        {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in state.items()},
        donor,
    )
    wanted = asked.targets
    have = plan.targets
    optional = _tied(asked, state, have)
    missing = [name for name in wanted if name not in have and name not in optional]
    extra = [name for name in have if name not in wanted and name not in donor]
    misshapen = [
        f"{name} {list(have[name].shape)} (config: {list(info.shape)})"
        for name, info in wanted.items()
        if name in have and have[name].shape != info.shape
    ]
    missing += _not_merged(
        donor, {*have, *stored}, {*optional, *wanted}, layers is not None, without_mtp
    )
    parts = [
        f"{what}: {_some(names)}"
        for what, names in [("missing", missing), ("left over", extra), ("shapes", misshapen)]
        if names
    ]
    if parts:
        raise YoyoError(
            "the merge does not hold the tensors that its config asks for or its donor has; "
            f"{'; '.join(parts)}. Either the run died early, or mergekit left them out without a "
            "word. --complete merges what is missing from the inputs; if the YAML is another one, "
            f"give --config.{_MTP if prediction_names(missing) else ''}"
        )


def _not_merged(
    donor: Collection[str],
    have: Collection[str],
    known: Collection[str],
    sliced: bool,
    without_mtp: bool,
) -> list[str]:
    """The donor's tensors that a merge has not, of those that the model class does not know.

    Slices move layers, so that only kinds of tensors can be compared then.
    """
    spelled = any_layer if sliced else str
    present = {spelled(name) for name in have}
    excused = prediction_names(donor) if without_mtp else set()
    return [
        name
        for name in donor
        if spelled(name) not in present
        and name not in known
        and name not in excused
        and not is_recomputed(name)
    ]


def lost_precision(plan: LayoutPlan, donor: Mapping[str, TensorInfo | None]) -> dict[str, str]:
    """Tensors that a donor of mixed dtypes keeps wider than the merge does: name -> what happened.

    Layers are put together: `model.layers.*.mlp.gate.bias`.
    """
    infos = {name: info for name, info in donor.items() if info is not None}
    if not infos:
        return {}
    usual = main_dtype(infos)
    wide = {any_layer(n): i.dtype for n, i in infos.items() if i.dtype.itemsize > usual.itemsize}
    lost = {}
    for name, info in plan.targets.items():
        dtype = wide.get(any_layer(name))
        if dtype is not None and info.dtype.itemsize < dtype.itemsize:
            lost[any_layer(name)] = f"{dtype} in the donor, {info.dtype} in the merge".replace(
                "torch.", ""
            )
    return lost


def _tied(
    asked: LayoutPlan, state: Mapping[str, torch.Tensor], have: Mapping[str, TensorInfo]
) -> set[str]:
    """Names that need not be in a checkpoint, since they share their data with one that is."""
    present = {
        id(state[name])
        for group in asked.groups
        for name in group.sources
        if all(target in have for target in group.targets)
    }
    return {
        target
        for group in asked.groups
        for target in group.targets
        if all(id(state[name]) in present for name in group.sources)
    }


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
