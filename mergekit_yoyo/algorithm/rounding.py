"""What writing a merge in half precision changes, measured where it is rounded.

The only place that knows the merge before it is rounded is the one that writes it: each pass that
does writes through a `Rounding`, which compares a sample of what it was given with what was kept.
"""

from math import isqrt

import torch
from torch import Tensor

from mergekit_yoyo.algorithm.precision import STEPS
from mergekit_yoyo.algorithm.tolerances import ROUNDING_SAMPLE


class Rounding:
    """Writes the merge of B problems, part by part, and measures what its dtype loses.

    out: [B, ...], any dtype and strides.
    """

    def __init__(self, out: Tensor) -> None:
        self._out = out
        # odd: else every sample would lie in the same few columns
        self._every = out[0].numel() // ROUNDING_SAMPLE | 1
        self._parts = 0
        self._squares = out.new_zeros((2, len(out)), dtype=torch.float64)

    def write(self, part: tuple[slice, ...], exact: Tensor) -> None:
        """`exact` (float32 or float64) to a part of the merge, whole problems or not."""
        target = self._out[part]
        target.copy_(exact)
        # one part in the root of their number, so that what is measured costs little, and at least
        # one of each problem
        skip = isqrt(max(1, len(target) * self._out[0].numel() // max(1, target.numel())))
        self._parts += 1
        if target.dtype in STEPS and (self._parts - 1) % skip == 0:
            sample = exact.flatten(1)[:, :: self._every]
            compared = torch.stack((target.flatten(1)[:, :: self._every] - sample, sample))
            norms = torch.linalg.vector_norm(compared, dim=2, dtype=torch.float64)
            self._squares[:, part[0]] += norms.square()

    @property
    def lost(self) -> Tensor:
        """[B] float64 on the device, |rounded - exact| / |exact| over the sample; NaN where the
        dtype is no half precision, or the merge zero."""
        changed, whole = self._squares
        share: Tensor = (changed / whole).sqrt()
        return share
