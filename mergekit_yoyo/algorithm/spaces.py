"""The spaces that recall works in: tensors as matrices or tables, a block of rows at a time.

A gradient step on y = W x moves W by (something) x^T, so that R_k^T R_k estimates the covariance of
the inputs that model k was trained on. C_k is a matrix over the inputs of a linear layer, and a
diagonal one over the rows of an embedding table (its inputs are one-hot) or over the elements of a
vector. The arithmetic is float64, or float32 where that is enough (`precision`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mergekit_yoyo.algorithm.options import Precision, TensorKind
from mergekit_yoyo.algorithm.precision import working_dtype
from mergekit_yoyo.algorithm.robust import Array
from mergekit_yoyo.algorithm.rounding import Destination

MIB = 2**20
WIDE = 2  # inputs per output
MATRICES_BYTES = 256 * MIB  # for the matrices of as many experts at once, or of one problem
Block = slice


@dataclass(frozen=True)
class Weighing:
    """How the inputs of B problems weigh. Arrays are float64 [B, K] on the host, or [B].

    scale: what the inputs are multiplied by first; x_k below is the result. center: m = sum_k
    center_k x_k. trust: omega_k, zero for inputs that are rejected or whose residual is zero.
    norms: ||x_k||. residual_squares: ||R_k||^2. strength: beta. prior: alpha. ridge: rho.
    """

    scale: Array
    center: Array
    trust: Array
    norms: Array
    residual_squares: Array
    strength: Array
    prior: Array
    ridge: float

    def of(self, part: slice) -> "Weighing":
        """That of some of the problems."""
        return Weighing(
            self.scale[part],
            self.center[part],
            self.trust[part],
            self.norms[part],
            self.residual_squares[part],
            self.strength[part],
            self.prior[part],
            self.ridge,
        )

    @property
    def share(self) -> Array:
        """[B], max_k ||R_k|| / ||x_k|| of the inputs that count."""
        residuals = np.where(self.trust > 0, np.sqrt(self.residual_squares), 0.0)
        shares: Array = (residuals / np.maximum(self.norms, np.finfo(float).tiny)).max(1)
        return shares


class Energies(Protocol):
    """Step 2 of recall, C_k for each input, and step 3's products with them.

    The divisor of step 3 is A = sum_k omega_k C_k + (rho / in) I.
    """

    @property
    def space(self) -> "Space":
        """What they are energies of."""

    def of(self, residuals: dict[int, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
        """omega_k R_k C_k on some rows of the R_k, and what A is for `divide`."""

    def divide(self, rows: Tensor, divisor: Tensor) -> Tensor:
        """rows A^-1."""

    def condition(self) -> Tensor:
        """[B], an upper bound on the condition number of A; NaN if diagonal."""


def spaces_of(
    tensors: Sequence[Tensor],
    weighing: Weighing,
    kind: TensorKind,
    precision: Precision,
    out: Destination | None,
) -> Iterator[tuple["Space", Destination | None]]:
    """The problems of K tensors [B, ...] in groups that fit into memory, with their part of `out`.

    kind: what a problem is, see `fuse`.
    """
    layers = _are_layers(tensors[0], kind)
    view = _as_matrices if layers else _as_rows
    made = LinearInputs if layers else TableRows
    inputs = [view(x, kind) for x in tensors]
    outputs = None if out is None else out.through(view(out.tensor, kind))
    squares = weighing.residual_squares[weighing.trust > 0]
    dtype, most = working_dtype(precision, inputs, squares=squares)
    step = made.problems_at_once(inputs[0].shape, len(inputs), dtype)
    for start in range(0, len(inputs[0]), step):
        part = slice(start, start + step)
        space = made([x[part] for x in inputs], weighing.of(part), dtype, most)
        yield space, None if outputs is None else outputs.part(part)


def layer_inputs(x: Tensor, kind: TensorKind) -> int:
    """How many inputs a linear layer has, of problems [B, ...]; 0 for tables and vectors."""
    return int(_as_matrices(x, kind).shape[2]) if _are_layers(x, kind) else 0


def _are_layers(x: Tensor, kind: TensorKind) -> bool:
    return kind in ("linear", "transposed") or (kind == "auto" and x.ndim > 2)


def _as_matrices(x: Tensor, kind: TensorKind) -> Tensor:
    """[B, outputs, inputs]; anything beyond a matrix is [outputs, the rest]."""
    if kind == "transposed":
        return x.transpose(1, 2)
    return x.reshape(x.shape[0], x.shape[1], -1)


def _as_rows(x: Tensor, kind: TensorKind) -> Tensor:
    """[B, rows, width]: the rows of an embedding table, or the elements of a vector."""
    if kind == "embedding" and x.ndim > 2:
        return x.reshape(x.shape[0], x.shape[1], -1)
    return x.reshape(x.shape[0], -1, 1)


@dataclass(frozen=True)
class Space(ABC):
    """B problems [B, rows, width] that are merged together, a block of rows at a time.

    Numbers per problem lie beside the tensors as [B, 1, 1], per input as [K, B, 1, 1].
    """

    tensors: Sequence[Tensor]
    weighing: Weighing
    dtype: torch.dtype
    most: float  # by which round-off may be enlarged in this dtype
    max_rows = 512  # of a block: more are no faster, and leave the cache

    @classmethod
    @abstractmethod
    def problems_at_once(cls, shape: Sequence[int], count: int, dtype: torch.dtype) -> int:
        """How many problems of the shape [B, rows, width] fit into the memory meant for them."""

    @abstractmethod
    def energies(self) -> Energies:
        """Step 2: C_k for each input; of the same problems in float64 where `dtype` will not do."""

    @property
    def rows(self) -> int:
        """Of a problem."""
        return int(self.tensors[0].shape[1])

    @property
    def width(self) -> int:
        """Of a row."""
        return int(self.tensors[0].shape[2])

    @cached_property
    def used(self) -> list[int]:
        """The inputs that are trusted in any problem."""
        return [int(k) for k in np.flatnonzero(self.weighing.trust.any(0))]

    @cached_property
    def trust(self) -> Tensor:
        """omega_k."""
        return self._on_device(self.weighing.trust)

    @cached_property
    def shares(self) -> Tensor:
        """omega_k / ||R_k||^2."""
        trust, squares = self.weighing.trust, self.weighing.residual_squares
        return self._on_device(np.divide(trust, squares, out=np.zeros_like(trust), where=trust > 0))

    @cached_property
    def strength(self) -> Tensor:
        """beta."""
        return self._on_device(self.weighing.strength)

    @property
    @abstractmethod
    def ridge(self) -> float:
        """rho / in."""

    def prior(self, residuals: dict[int, Tensor], like: Tensor) -> Tensor:
        """(rho / in) (y_0 - m) = (rho / in) alpha sum_k omega_k R_k on some rows."""
        total = torch.zeros_like(like)
        if self.weighing.prior.any():
            for k, residual in residuals.items():
                total.addcmul_(residual, self._pull[k])
        return total

    @cached_property
    def _pull(self) -> Tensor:
        return self._on_device(self.ridge * self.weighing.prior[:, None] * self.weighing.trust)

    def per_input(self) -> Tensor:
        """[K, B] zeros."""
        return self.trust.new_zeros((len(self.tensors), len(self.tensors[0])))

    def blocks(self) -> Iterator[Block]:
        """Blocks of rows whose residuals and products fit into the scratch."""
        row_bytes = len(self.tensors[0]) * self.width * self.dtype.itemsize
        row_bytes *= 2 * len(self.used) + 4
        step = min(self.max_rows, max(1, scratch_bytes(self.tensors[0].device) // row_bytes))
        step = -(-self.rows // -(-self.rows // step))  # of one size: a wide matrix is read for each
        for start in range(0, self.rows, step):
            yield slice(start, min(start + step, self.rows))

    def residuals(self, block: Block) -> tuple[Tensor, dict[int, Tensor]]:
        """m, and R_k of the inputs that count, on some rows: [B, rows, width]."""
        center = torch.zeros_like(self.tensors[0][:, block], dtype=self.dtype)
        loaded = {k: self._load(k, block) for k in self.used}
        for k in np.flatnonzero(self.weighing.center.any(0)).tolist():
            x = loaded[k] if k in loaded else self._load(k, block)
            center.addcmul_(x, self._center[k])
        return center, {k: x.sub_(center) for k, x in loaded.items()}

    @cached_property
    def _center(self) -> Tensor:
        return self._on_device(self.weighing.center)

    @cached_property
    def _scale(self) -> Tensor | None:
        scale = self.weighing.scale
        return None if (scale == 1).all() else self._on_device(scale)

    def _load(self, k: int, block: Block) -> Tensor:
        x = self.tensors[k][:, block].to(self.dtype, copy=True)
        return x if self._scale is None else x.mul_(self._scale[k])

    def _on_device(self, array: Array) -> Tensor:
        """[B, K] as [K, B, 1, 1] and [B] as [B, 1, 1], beside the tensors."""
        beside = torch.from_numpy(array.T[..., None, None].copy())
        return beside.to(device=self.tensors[0].device, dtype=self.dtype)


class LinearInputs(Space):
    """Linear layers [B, outputs, inputs]: C_k = R_k^T R_k / ||R_k||^2."""

    @classmethod
    def problems_at_once(cls, shape: Sequence[int], count: int, dtype: torch.dtype) -> int:
        kept = 1 if _is_wide(*shape[1:]) else 1 + count
        return max(1, int(MATRICES_BYTES // (kept * shape[2] ** 2 * dtype.itemsize)))

    def energies(self) -> Energies:
        """One pass over the residuals; of wide matrices only the sum is kept. Where `most` bounds
        it, how much round-off is enlarged is waited for: one number a problem."""
        problems = len(self.tensors[0])
        square = (problems, self.width, self.width)
        wide = _is_wide(self.rows, self.width)
        each = {} if wide else {k: self.trust.new_zeros(square) for k in self.used}
        total = self.trust.new_zeros(square)
        bounded = math.isfinite(self.most)
        row = self.trust.new_zeros(problems)  # the longest of all sqrt(omega_k) R_k / |R_k|
        for block in self.blocks():
            for k, residual in self.residuals(block)[1].items():
                scaled = residual.mul_(self.shares[k].sqrt())
                if bounded:
                    row = torch.maximum(row, torch.linalg.vector_norm(scaled, dim=2).amax(1))
                each.get(k, total).baddbmm_(scaled.transpose(1, 2), scaled)
        for k in each:
            total += each[k]
        if bounded and (self.enlarged(total, row).cpu().numpy() > self.most).any():
            del each, total  # those of float64 take their place
            return replace(self, dtype=torch.float64, most=math.inf).energies()
        total.diagonal(dim1=1, dim2=2).add_(self.ridge)
        condition: Tensor = torch.linalg.matrix_norm(total) / self.ridge
        info = total.new_empty(0, dtype=torch.int32)
        # in the place of the sum, which is not needed any more; transposed (it is symmetric), as
        # LAPACK wants it: torch's own copies would take as long as the factorization
        columns = total.transpose(1, 2)
        lower, failed = torch.linalg.cholesky_ex(columns, out=(columns, info))
        # where `most` bounds round-off, and in float64, the ridge is never lost in it
        if self.dtype == torch.float32 and not bounded and failed.cpu().any():
            raise FloatingPointError(
                f"the ridge {self.weighing.ridge:g} is lost in the round-off of "
                "recall_precision: float32. Set it to auto, or the ridge higher."
            )
        return _Dense(self, each, lower, condition)

    def enlarged(self, total: Tensor, row: Tensor) -> Tensor:
        """[B], by how much the division can enlarge round-off, in units of the weights.

        total: [B, in, in], sum_k omega_k C_k. row: [B], the longest of the omega_k^1/2 R_k / |R_k|.
        """
        column = torch.linalg.vector_norm(total, dim=1).amax(1)
        share = self._on_device(self.weighing.share)[:, 0, 0]
        largest: Tensor = math.sqrt(self.rows * self.width) / self.ridge * share * row * column
        return largest

    @property
    def ridge(self) -> float:
        return self.weighing.ridge / self.width


@dataclass(frozen=True)
class _Dense:
    """each: omega_k C_k, [B, in, in], none for wide matrices. lower: L of A = L L^T. bound: of the
    condition number."""

    space: LinearInputs
    each: dict[int, Tensor]
    lower: Tensor
    bound: Tensor

    def of(self, residuals: dict[int, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
        if self.each or not residuals:
            return {k: torch.bmm(r, self.each[k]) for k, r in residuals.items()}, self.lower
        return self._of_wide(residuals), self.lower

    def _of_wide(self, residuals: dict[int, Tensor]) -> dict[int, Tensor]:
        """The same by (R_k R_k^T) R_k, and one more pass."""
        space = self.space
        own = {k: torch.zeros_like(r) for k, r in residuals.items()}
        for block in space.blocks():
            for k, other in space.residuals(block)[1].items():
                products = torch.bmm(residuals[k], other.transpose(1, 2)).mul_(space.shares[k])
                own[k].baddbmm_(products, other)
        return own

    def divide(self, rows: Tensor, divisor: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(divisor.transpose(1, 2), rows, upper=True, left=False)
        solution: Tensor = torch.linalg.solve_triangular(divisor, half, upper=False, left=False)
        return solution

    def condition(self) -> Tensor:
        return self.bound


class TableRows(Space):
    """Embedding tables, and vectors as tables of width 1: C_k is diagonal, one number a row."""

    max_rows = 2**16

    @classmethod
    def problems_at_once(cls, shape: Sequence[int], count: int, dtype: torch.dtype) -> int:
        return shape[0]

    def energies(self) -> Energies:
        """Nothing to do before: a row knows its own."""
        return _Diagonal(self)

    @property
    def ridge(self) -> float:
        return self.weighing.ridge / self.rows


@dataclass(frozen=True)
class _Diagonal:
    space: TableRows

    def of(self, residuals: dict[int, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
        own = {}
        divisor = torch.full_like(self.space.strength, self.space.ridge)
        for k, residual in residuals.items():
            energy = residual.square().sum(2, keepdim=True) * self.space.shares[k]
            own[k] = residual * energy
            divisor = divisor + energy
        return own, divisor

    def divide(self, rows: Tensor, divisor: Tensor) -> Tensor:
        return rows / divisor

    def condition(self) -> Tensor:
        return self.space.trust.new_full((len(self.space.tensors[0]),), torch.nan)


def _is_wide(outputs: int, inputs: int) -> bool:
    """Whether R_k (R_k^T R_k) costs less as (R_k R_k^T) R_k."""
    return inputs >= WIDE * outputs


def scratch_bytes(device: torch.device) -> int:
    """Scratch for one block of rows: enough rows for matrix products at full speed."""
    return (256 if device.type == "cpu" else 1024) * MIB
