"""How a merge is written in half precision, and what that changes, measured where it is rounded.

The only place that knows the merge before it is rounded is the one that writes it: each pass that
does writes through a `Rounding`, which compares a sample of what it was given with what was kept.

To nearest, moves of less than half a step are lost. Stochastic rounding takes one of the two
neighbors, each as likely as it is near: single elements are off by more, but not to one side. What
it draws is a hash of a name and of the element's place: the same in every run, whatever the order
of the tensors, the number of threads or workers, and the device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt, log2, prod
from zlib import crc32

import torch
from torch import Tensor

from mergekit_yoyo.algorithm.options import RoundingRule
from mergekit_yoyo.algorithm.precision import STEPS
from mergekit_yoyo.algorithm.tolerances import ROUNDING_SAMPLE

DRAWN_BITS = 16  # as many as float32 has beyond bfloat16
DRAWN_AT_ONCE = 2**16  # elements a thread, whose bits stay in cache
DRAWN_ON_GPU = 2**21
# of 32 bits, with the multiplier that follows: those of MurmurHash3's finalizer, and one more
# round, without which the pairs of neighbors are not even
MIXING = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 0x7FEB352D))


@dataclass(frozen=True)
class Destination:
    """Where the merge of B problems goes, and how it is rounded there.

    tensor: [B, ...], any dtype and strides. seeds: [B] int32 beside it, of stochastic rounding;
    None: to nearest.
    """

    tensor: Tensor
    seeds: Tensor | None = None

    @classmethod
    def of(cls, tensor: Tensor, rule: RoundingRule, name: str) -> "Destination":
        """rule: how. name: what is drawn depends on it."""
        if rule == "nearest" or tensor.dtype not in STEPS:
            return cls(tensor)
        seeds = [crc32(f"{name}/{problem}".encode()) for problem in range(len(tensor))]
        # as int32, which wraps: torch has no arithmetic of uint32
        return cls(tensor, torch.tensor(seeds).to(torch.int32).to(tensor.device))

    def part(self, problems: slice) -> "Destination":
        """That of some of the problems."""
        return Destination(
            self.tensor[problems], None if self.seeds is None else self.seeds[problems]
        )

    def through(self, view: Tensor) -> "Destination":
        """The same through a view of its tensor [B, ...] with other axes."""
        return Destination(view, self.seeds)


class Rounding:
    """Writes the merge of B problems, part by part, and measures what its dtype loses."""

    def __init__(self, out: Destination) -> None:
        self._out = out.tensor
        self._seeds = out.seeds
        # odd: else every sample would lie in the same few columns
        self._every = self._out[0].numel() // ROUNDING_SAMPLE | 1
        self._parts = 0
        self._squares = self._out.new_zeros((2, len(self._out)), dtype=torch.float64)

    def write(self, part: tuple[slice, ...], exact: Tensor) -> None:
        """`exact` (float32 or float64) to a part of the merge: whole problems, or of each the same
        range of elements that follow one another."""
        target = self._out[part]
        target.copy_(exact if self._seeds is None else self._drawn(part, exact, self._seeds))
        # one part in the root of their number, so that what is measured costs little, and at least
        # one of each problem
        skip = isqrt(max(1, len(target) * self._out[0].numel() // max(1, target.numel())))
        self._parts += 1
        if target.dtype in STEPS and (self._parts - 1) % skip == 0:
            sample = exact.flatten(1)[:, :: self._every]
            compared = torch.stack((target.flatten(1)[:, :: self._every] - sample, sample))
            norms = torch.linalg.vector_norm(compared, dim=2, dtype=torch.float64)
            self._squares[:, part[0]] += norms.square()

    def _drawn(self, part: tuple[slice, ...], exact: Tensor, seeds: Tensor) -> Tensor:
        """`exact`, rounded by chance."""
        axes = self._out.shape[1:]
        first = sum((at.start or 0) * prod(axes[a + 1 :]) for a, at in enumerate(part[1:]))
        values = exact.flatten(1)
        rounded = torch.empty_like(values, dtype=self._out.dtype)
        for piece in _pieces(values):
            start = first + piece.start
            bits = random_bits(start, first + piece.stop, seeds[part[0]])
            rounded[:, piece] = stochastic(values[:, piece], self._out.dtype, bits)
        return rounded.view(exact.shape)

    @property
    def lost(self) -> Tensor:
        """[B] float64 on the device, |rounded - exact| / |exact| over the sample; NaN where the
        dtype is no half precision, or the merge zero."""
        changed, whole = self._squares
        share: Tensor = (changed / whole).sqrt()
        return share


def stochastic(exact: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """`exact` in the values of bfloat16 or float16: one of its two neighbors, each as likely as it
    is near. As float32, through which it goes; beyond the largest number, where there is but
    infinity, to nearest.

    bits: uniform in 0 .. 2^16 - 1, int32, of the shape of `exact`.
    """
    values, info = exact.float(), torch.finfo(dtype)
    beyond = 23 + round(log2(info.eps))  # bits of float32 that the dtype does not have
    noise = bits >> DRAWN_BITS - beyond
    if info.tiny == torch.finfo(torch.float32).tiny:
        kept = _cut(values, noise, beyond)
    else:
        # float16: below its least normal number the steps are those above it
        lift = torch.where(values.abs() < info.tiny, info.tiny, 0.0).copysign_(values)
        kept = _cut(values + lift, noise, beyond).sub_(lift).copysign_(values)
    return torch.where(values.abs() < info.max, kept, values)


def _cut(values: Tensor, noise: Tensor, beyond: int) -> Tensor:
    """float32 without so many of its last bits, after noise in them: away from zero, or not."""
    raised = values.view(torch.int32) + noise
    return raised.bitwise_and_(-1 << beyond).view(torch.float32)


def random_bits(start: int, stop: int, seeds: Tensor) -> Tensor:
    """[B, stop - start] int32, uniform in 0 .. 2^16 - 1: of elements start .. stop - 1 of problems
    with these seeds, [B] int32. They repeat after 2^32 elements."""
    bits = torch.arange(start, stop, device=seeds.device).to(torch.int32)
    first, *rest = MIXING
    _mix(bits, *first)
    bits = bits ^ seeds[:, None]
    for round_of in rest:
        _mix(bits, *round_of)
    return (bits >> 32 - DRAWN_BITS).bitwise_and_(2**DRAWN_BITS - 1)


def _mix(bits: Tensor, shift: int, multiplier: int) -> None:
    """In place; int32, whose shift to the right brings the sign in, and whose products wrap."""
    bits ^= (bits >> shift).bitwise_and_(2 ** (32 - shift) - 1)
    bits *= multiplier - (multiplier >> 31 << 32)


def _pieces(values: Tensor) -> Iterator[slice]:
    """Ranges of the columns of [B, n], so many at once as are drawn at once."""
    on_cpu = values.device.type == "cpu"
    most = DRAWN_AT_ONCE * torch.get_num_threads() if on_cpu else DRAWN_ON_GPU
    problems, count = values.shape
    step = max(1, most // max(1, problems))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
