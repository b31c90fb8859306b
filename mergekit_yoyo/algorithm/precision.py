"""The precision that recall works in: float32 where the rounding of the result hides it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from mergekit_yoyo.algorithm.options import Precision
from mergekit_yoyo.algorithm.robust import Array
from mergekit_yoyo.algorithm.tolerances import FLOAT32_ENLARGED, FLOAT32_SQUARES

STEPS = {torch.bfloat16: 1.0, torch.float16: 1 / 8}  # in steps of bfloat16


def working_dtype(
    precision: Precision, tensors: Sequence[Tensor], *, squares: Array
) -> tuple[torch.dtype, float]:
    """float32 or float64, for the residuals, energies and the solve of K tensors; and by how much
    the solve may enlarge round-off before float64 is needed after all (`FLOAT32_ENLARGED`).

    squares: ||R_k||^2 of the residuals that count.

    `auto` begins in float32 for results in half precision, as long as the squares are well inside
    its range; the enlarged round-off must stay below 1/20 of a step of the result.
    """
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.float64, math.inf
    step = STEPS.get(reduce(torch.promote_types, (x.dtype for x in tensors)))
    low, high = FLOAT32_SQUARES
    if step is None or not np.all((squares > low) & (squares < high)):
        return torch.float64, math.inf
    return torch.float32, step * FLOAT32_ENLARGED


@dataclass
class _Multiplying:
    """How many threads are in `whole_float32`, and what the first of them found."""

    lock: Lock = field(default_factory=Lock)
    threads: int = 0
    found: list[str] = field(default_factory=list)


_multiplying = _Multiplying()


@contextmanager
def whole_float32() -> Iterator[None]:
    """Products of float32 are products of float32 meanwhile.

    Torch can be told, by a training loop before us, to take TF32 or bfloat16 for them
    (`torch.set_float32_matmul_precision`): 10 or 7 bits of 23. It is told of all threads: the last
    of several that multiply at once gives back what the first one found.
    """
    on_cpu = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    backends = (torch.backends.cuda.matmul, on_cpu)
    with _multiplying.lock:
        _multiplying.threads += 1
        if _multiplying.threads == 1:
            _multiplying.found = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _multiplying.lock:
            _multiplying.threads -= 1
            if not _multiplying.threads:
                for backend, precision in zip(backends, _multiplying.found, strict=True):
                    backend.fp32_precision = precision
