"""What `fuse` returns: the merge, and what happened on the way."""

from dataclasses import MISSING, dataclass, fields
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

    weights: [P, K] in [0, 1], how much each input weighed: the mean of W_kj of step 7 over the kept
        directions, weighted by their energy; with recall, omega_k. 1 is full trust, 0 rejected.
    priors: [P, K], the weights of the models with mean 1; None where all have the same.
    center_weights: [P, K], the center is sum_k center_weights_k u_k (with recall also of the x_k);
        NaN with the coordinate median, which is no combination of the inputs.
    residual_gram: [P, K, K], R R^T; residual_norms: [P, K], ||R_k||, of the u_k.
    rms, norms: [P, K], r_k of step 1 and ||x_k||.
    iterations: [P], of the geometric median, with recall of its reweighting; center_status: [P],
        how that ended: "converged", "data_point", "midpoint" or "not_converged", and "direct" where
        nothing was iterated.
    rounding: [P], |written - exact| / |exact|, what the dtype of the merge loses, measured on a
        sample; a float64 tensor on the device of the inputs. NaN for float32 and wider, None if
        nothing was written.

    With consensus `tukey`, else None:
    coefficients: [P, K], the merge is sum_k coefficients_k x_k; NaN with the coordinate median.
    rank, energy, energy_scale: [P], r' (integer), p and lambda of steps 5 and 6.
    direction_scales: [P, K], s_j of step 7, NaN beyond the rank; global_scale: [P], s_g.

    With consensus `recall`, else None:
    strength: [P], beta.
    recalled: [P, K], how much of its own residual each input has back; condition_number: [P], an
        upper bound for the solve, NaN for embeddings and vectors. Both are float64 tensors on the
        device of the inputs, so that nobody waits for them unasked.
    """

    weights: Array
    center_weights: Array
    residual_gram: Array
    residual_norms: Array
    rms: Array
    norms: Array
    iterations: NDArray[np.int64]
    center_status: NDArray[np.str_]

    priors: Array | None = None
    rounding: Tensor | None = None

    coefficients: Array | None = None
    rank: NDArray[np.int64] | None = None
    energy: Array | None = None
    energy_scale: Array | None = None
    direction_scales: Array | None = None
    global_scale: Array | None = None

    strength: Array | None = None
    recalled: Tensor | None = None
    condition_number: Tensor | None = None


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
        found: dict[str, Any] = {f.name: getattr(details, f.name) for f in fields(Details)}
        if not packed:
            found = {name: None if x is None else x[0] for name, x in found.items()}
        return cls(tensor=tensor, **found)

    @classmethod
    def untouched(cls, tensor: Tensor) -> "FusionResult":
        """The result of a merge with nothing to do."""
        nothing: dict[str, Any] = {
            field.name: np.empty(0) for field in fields(Details) if field.default is MISSING
        }
        return cls(tensor=tensor, **nothing)
