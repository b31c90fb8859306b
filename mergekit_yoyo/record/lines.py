"""A tensor's line of the record, made from what the merge of that tensor found out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mergekit_yoyo.algorithm.consensuses import CONSENSUSES, Consensus
from mergekit_yoyo.algorithm.result import Details
from mergekit_yoyo.algorithm.robust import Array
from mergekit_yoyo.record.schema import (
    COLUMNS,
    Finding,
    FindingKind,
    Scalar,
    TensorLine,
    pairs,
)
from mergekit_yoyo.rejection import REJECTED


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
    columns = _columns(details, len(inputs))
    recalls = "strength" in columns
    if anchor is not None and recalls:
        columns["weights"] = columns["weights"].copy()
        columns["weights"][:, anchor] = np.nan
    for unknown in ("center_weights", "rounding"):
        if unknown in columns and np.isnan(columns[unknown]).all():
            del columns[unknown]
    gram = details.residual_gram.reshape(-1, len(inputs), len(inputs))
    columns["cosines"] = _cosines(gram, columns["residual_norms"])
    found: dict[str, object] = {name: _listed(values) for name, values in columns.items()}
    return line.model_copy(
        update={
            **found,
            "warnings": _findings(columns, details, inputs, CONSENSUSES[line.consensus], anchor),
        }
    )


def _columns(details: Details, count: int) -> dict[str, Array]:
    """Every column that the details have a field of: [P], or [P, width]."""
    columns = {}
    for name, per in COLUMNS.items():
        values = getattr(details, name, None)
        if values is not None:
            on_host = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
            width = per.width(count)
            columns[name] = on_host.reshape(-1, width) if width else on_host.reshape(-1)
    return columns


def _findings(
    columns: Mapping[str, Array],
    details: Details,
    inputs: Sequence[str],
    consensus: Consensus,
    anchor: int | None,
) -> list[Finding]:
    """What deserves a look, in the order in which it is told."""
    rejected = columns["weights"] < REJECTED
    stuck = np.atleast_1d(details.center_status) == "not_converged"
    findings = [
        Finding(kind="rejected", model=model, problems=count)
        for model, count in zip(inputs, rejected.sum(0).tolist(), strict=True)
        if count
    ]
    where: dict[FindingKind, Any] = {
        "identical": consensus.identical(details, anchor),
        "not_converged": stuck,
        "alone": consensus.alone(details, anchor),
    }
    for kind, problems in where.items():
        if problems.any():
            findings.append(Finding(kind=kind, problems=int(problems.sum())))
    return findings


def _cosines(gram: Array, residual_norms: Array) -> Array:
    """[P, pairs]: cosines of the residuals, NaN where one is zero."""
    first, second = zip(*pairs(gram.shape[1]), strict=True)
    lengths = residual_norms[:, first] * residual_norms[:, second]
    lengths = np.where(lengths > 0, lengths, np.nan)
    return np.clip(gram[:, first, second] / lengths, -1.0, 1.0)


def _listed(values: Array) -> list[object]:
    """Counts as they are; numbers with six significant digits, null for what is no number."""
    if values.ndim == 2:
        return [_listed(row) for row in values]
    if values.dtype.kind == "i":
        return list(values.tolist())
    return [float(f"{x:.6g}") if math.isfinite(x) else None for x in values.tolist()]
