"""What `fuse` returns: the merge, and what happened on the way."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mergekit_yoyo.algorithm.robust import Array


@dataclass(frozen=True, kw_only=True)
class Details:
    """What a merge did. Arrays are float64 on the host unless said otherwise.

    The leading axis [P] counts the problems: the experts of a packed tensor, gate and up in turn.
    It is absent for an ordinary tensor.

    weights: [P, K] in [0, 1], how much each input weighed in the consensus (step 7): the mean of
        W_kj over the kept directions, weighted by their energy. 1 is full trust, 0 is rejected.
    coefficients: [P, K], the merge is sum_k coefficients_k x_k; NaN with the coordinate median,
        whose center is no combination of the inputs.
    center_weights: [P, K], the center is sum_k center_weights_k u_k; NaN likewise.
    rank, energy, energy_scale: [P], r' (integer), p and lambda of steps 5 and 6.
    direction_scales: [P, K], s_j of step 7, NaN beyond the rank; global_scale: [P], s_g.
    residual_gram: [P, K, K], R R^T; residual_norms: [P, K], ||R_k||.
    rms, norms: [P, K], r_k of step 1 and ||x_k||.
    iterations: [P], of the geometric median; center_status: [P], how it ended: "converged",
        "data_point", "midpoint" or "not_converged", and "direct" for the other centers.
    """

    weights: Array
    coefficients: Array
    center_weights: Array
    rank: NDArray[np.int64]
    energy: Array
    energy_scale: Array
    direction_scales: Array
    global_scale: Array
    residual_gram: Array
    residual_norms: Array
    rms: Array
    norms: Array
    iterations: NDArray[np.int64]
    center_status: NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class FusionResult(Details):
    """The merge and what happened; see `Details` for the fields beside the tensor.

    tensor: shape of the inputs, their promoted dtype. With one input, or no elements, it is the
        first input itself and the other fields are empty.
    """

    tensor: Tensor

    @classmethod
    def of(cls, tensor: Tensor, details: Details, *, packed: bool) -> "FusionResult":
        """The merge with its details; the problem axis is dropped if there is but one problem."""
        arrays: dict[str, Any] = {f.name: getattr(details, f.name) for f in fields(Details)}
        if not packed:
            arrays = {name: array[0] for name, array in arrays.items()}
        return cls(tensor=tensor, **arrays)

    @classmethod
    def untouched(cls, tensor: Tensor) -> "FusionResult":
        """The result of a merge with nothing to do."""
        nothing: dict[str, Any] = {field.name: np.empty(0) for field in fields(Details)}
        return cls(tensor=tensor, **nothing)
