"""The precision that recall works in: float32 where the rounding of the result hides it."""

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from mergekit_yoyo.algorithm.options import Precision
from mergekit_yoyo.algorithm.robust import Array
from mergekit_yoyo.algorithm.tolerances import FLOAT32_ENLARGED, FLOAT32_SQUARES

STEPS = {torch.bfloat16: 1.0, torch.float16: 1 / 8}  # in steps of bfloat16


def working_dtype(
    precision: Precision, tensors: Sequence[Tensor], *, squares: Array, enlarged: float
) -> torch.dtype:
    """float32 or float64, for the residuals, energies and the solve of K tensors.

    squares: ||R_k||^2 of the residuals that count. enlarged: by how much the solve can enlarge the
    round-off of a product, in units of the weights (see `FLOAT32_ENLARGED`).

    `auto` is float32 for results in half precision, as long as the enlarged round-off stays below
    1/20 of their step, and the squares are well inside the range of float32.
    """
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.float64
    step = STEPS.get(reduce(torch.promote_types, (x.dtype for x in tensors)))
    low, high = FLOAT32_SQUARES
    inside = bool(np.all((squares > low) & (squares < high)))
    enough = step is not None and inside and enlarged <= step * FLOAT32_ENLARGED
    return torch.float32 if enough else torch.float64
