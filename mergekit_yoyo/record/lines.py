"""A tensor's line of the record, made from what the merge of that tensor found out."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from mergekit_yoyo.algorithm.result import Details
from mergekit_yoyo.algorithm.robust import Array
from mergekit_yoyo.algorithm.trust import REJECTED
from mergekit_yoyo.record.schema import Finding, Number, Scalar, TensorLine, pairs


def tensor_line(
    name: str,
    tensor: Tensor,
    details: Details,
    *,
    inputs: Sequence[str],
    parameters: Mapping[str, Scalar],
    anchor: int | None = None,
) -> TensorLine:
    """The line of one tensor.

    tensor: one of the inputs or the merge, for the shape, and the dtype of the merge. details: of
    `fuse`, with or without the axis of the problems. inputs: names of the K inputs, in
    their order. parameters: the options the tensor was merged with, all of them. anchor: the index
    of the anchor, which recall does not weigh.
    """
    line = TensorLine(
        name=name,
        shape=list(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        inputs=list(inputs),
        parameters=dict(parameters),
        consensus=str(parameters["consensus"]),
    )
    if details.weights.size == 0:
        return line
    gram = details.residual_gram.reshape(-1, len(inputs), len(inputs))
    weights, center_weights, norms, residual_norms = (
        array.reshape(-1, len(inputs))
        for array in (
            details.weights,
            details.center_weights,
            details.norms,
            details.residual_norms,
        )
    )
    if anchor is not None and details.strength is not None:
        weights = weights.copy()
        weights[:, anchor] = np.nan
    found: dict[str, object] = {
        "norms": _rows(norms),
        "cosines": _rows(_cosines(gram, residual_norms)),
        "residual_norms": _rows(residual_norms),
        "weights": _rows(weights),
        "center_weights": None if np.isnan(center_weights).all() else _rows(center_weights),
        "iterations": np.atleast_1d(details.iterations).tolist(),
    }
    for quantity in ("energy", "energy_scale", "strength"):
        values = getattr(details, quantity)
        found[quantity] = None if values is None else _row(np.atleast_1d(values))
    identical, alone = np.zeros((2, len(weights)), dtype=bool)
    if details.rank is not None:
        found["rank"] = np.atleast_1d(details.rank).tolist()
        identical = np.atleast_1d(details.rank) == 0
    if (
        details.recalled is not None
        and details.condition_number is not None
        and details.strength is not None
    ):
        recalled = details.recalled.cpu().numpy().reshape(-1, len(inputs))
        found["recalled"] = _rows(recalled)
        found["condition_number"] = _row(details.condition_number.cpu().numpy().reshape(-1))
        identical = np.isnan(recalled).all(1) & ~(weights < REJECTED).any(1)
        alone = (np.atleast_1d(details.strength) == 0) & ~identical & (anchor is None)
    stuck = np.atleast_1d(details.center_status) == "not_converged"
    rejected = (weights < REJECTED).sum(0).tolist()
    findings = [
        Finding(kind="rejected", model=model, problems=count)
        for model, count in zip(inputs, rejected, strict=True)
        if count
    ]
    for kind, where in (("identical", identical), ("not_converged", stuck), ("alone", alone)):
        if where.any():
            findings.append(Finding.model_validate({"kind": kind, "problems": int(where.sum())}))
    return line.model_copy(update={**found, "warnings": findings})


def _cosines(gram: Array, residual_norms: Array) -> Array:
    """[P, pairs]: cosines of the residuals, NaN where one is zero."""
    columns = [
        gram[:, i, j] / _nan_if_zero(residual_norms[:, i] * residual_norms[:, j])
        for i, j in pairs(gram.shape[1])
    ]
    return np.clip(np.stack(columns, axis=1), -1.0, 1.0)


def _nan_if_zero(values: Array) -> Array:
    return np.where(values > 0, values, np.nan)


def _rows(values: Array) -> list[list[Number]]:
    return [_row(row) for row in values]


def _row(values: Array) -> list[Number]:
    """Numbers with six significant digits, null for what is no number."""
    return [float(f"{x:.6g}") if math.isfinite(x) else None for x in values.tolist()]
