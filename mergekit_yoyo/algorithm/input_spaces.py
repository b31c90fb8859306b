"""Steps 2 to 4 of recall on tensors: each model's energy in the space of a layer's inputs.

A gradient step on y = W x moves W by (something) x^T, so that R_k^T R_k estimates the covariance of
the inputs that model k was trained on. A_k is a matrix over the inputs of a linear layer, and a
diagonal one over the rows of an embedding table (its inputs are one-hot) or over the elements of a
vector.

All of it is float64: float32 products lose the directions in which nobody moved, where the ridge is
all there is, and miss the result by 1e-5 to 1e-3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mergekit_yoyo.algorithm.options import Kind
from mergekit_yoyo.algorithm.robust import Array

MIB = 2**20
WIDE = 2  # inputs per output
MATRICES_BYTES = 256 * MIB  # for the matrices of as many experts at once, or of one problem


@dataclass(frozen=True)
class Weighing:
    """How the inputs of B problems weigh. Arrays are float64 [B, K] on the host, or [B].

    scale: what the inputs are multiplied by first; x_k below is the result. center: m = sum_k
    center_k x_k. trust: omega_k, zero for inputs that are rejected or whose
    residual is zero. residual_squares: ||R_k||^2. strength: beta. ridge: rho.
    """

    scale: Array
    center: Array
    trust: Array
    residual_squares: Array
    strength: Array
    ridge: float

    def of(self, part: slice) -> "Weighing":
        """That of some of the problems."""
        return Weighing(
            self.scale[part],
            self.center[part],
            self.trust[part],
            self.residual_squares[part],
            self.strength[part],
            self.ridge,
        )


def merge_in_input_spaces(
    tensors: Sequence[Tensor], weighing: Weighing, kind: Kind, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Write m + beta P, P = (sum_k omega_k R_k A_k) (sum_k omega_k A_k)^-1, for B problems.

    tensors: K tensors [B, ...]; out: [B, ...], written to unless it is None.
    kind: what a problem is, see `fuse`.

    Returns two float64 tensors on the device, which need not be waited for:
    recalled: [B, K], how much of its own residual each input has back,
        <y - m, R_k>_A_k / <R_k, R_k>_A_k, NaN where it has none;
    condition: [B], an upper bound on the condition number of sum_k omega_k A_k, NaN for embeddings
        and vectors.
    """
    matrices = kind in ("linear", "transposed") or (kind == "auto" and tensors[0].ndim > 2)
    view = _as_matrices if matrices else _as_rows
    work = _Matrices if matrices else _Rows
    inputs = [view(x, kind) for x in tensors]
    outputs = None if out is None else view(out, kind)
    recalled, conditions = [], []
    step = work.problems_at_once(inputs[0].shape, len(inputs))
    for start in range(0, len(inputs[0]), step):
        part = slice(start, start + step)
        group = work([x[part] for x in inputs], weighing.of(part))
        recalled.append(group.merge_into(None if outputs is None else outputs[part]))
        conditions.append(group.condition())
    return torch.cat(recalled), torch.cat(conditions)


def _as_matrices(x: Tensor, kind: Kind) -> Tensor:
    """[B, outputs, inputs]; anything beyond a matrix is [outputs, the rest]."""
    if kind == "transposed":
        return x.transpose(1, 2)
    return x.reshape(x.shape[0], x.shape[1], -1)


def _as_rows(x: Tensor, kind: Kind) -> Tensor:
    """[B, rows, width]: the rows of an embedding table, or the elements of a vector."""
    if kind == "embedding" and x.ndim > 2:
        return x.reshape(x.shape[0], x.shape[1], -1)
    return x.reshape(x.shape[0], -1, 1)


class _Group:
    """B problems [B, rows, width] that are merged together, a block of rows at a time."""

    max_rows: int  # of a block: more are no faster, and leave the cache

    def __init__(self, tensors: Sequence[Tensor], weighing: Weighing) -> None:
        self.tensors = tensors
        self.rows, self.width = tensors[0].shape[1:]
        self.weighing = weighing
        self.used = np.flatnonzero(weighing.trust.any(0)).tolist()
        shares = np.zeros_like(weighing.trust)
        np.divide(weighing.trust, weighing.residual_squares, out=shares, where=weighing.trust > 0)
        self.scale = None if (weighing.scale == 1).all() else self._on_device(weighing.scale)
        self.center = self._on_device(weighing.center)
        self.trust = self._on_device(weighing.trust)
        self.shares = self._on_device(shares)  # omega_k / ||R_k||^2
        self.strength = self._on_device(weighing.strength)
        # 1 where nobody is trusted: all weights are zero, and any divisor but zero will do
        self.nobody = self._on_device((weighing.trust.sum(1) == 0).astype(float))

    @classmethod
    def problems_at_once(cls, shape: Sequence[int], count: int) -> int:
        """How many problems of the shape [B, rows, width] fit into the memory meant for them."""
        raise NotImplementedError

    def merge_into(self, out: Tensor | None) -> Tensor:
        """Write m + beta P to `out` and return [B, K], how much of its own each input has back."""
        back = self.trust.new_zeros((2, len(self.tensors), len(self.tensors[0])))
        for block in self.blocks():
            center, residuals = self.residuals(block)
            weighted = self.in_own_spaces(residuals)
            move = torch.zeros_like(center)
            for own in weighted.values():
                move.add_(own)
            move = self.solve(move).mul_(self.strength)
            for k, own in weighted.items():
                back[0, k] += _dot(move, own)
                back[1, k] += _dot(residuals[k], own)
            if out is not None:
                out[:, block].copy_(center.add_(move))
        return (back[0] / back[1]).T

    def in_own_spaces(self, residuals: dict[int, Tensor]) -> dict[int, Tensor]:
        """omega_k R_k A_k for some rows of the R_k."""
        raise NotImplementedError

    def solve(self, total: Tensor) -> Tensor:
        """total (sum_k omega_k A_k)^-1 for some rows."""
        raise NotImplementedError

    def condition(self) -> Tensor:
        """[B], an upper bound on the condition number of sum_k omega_k A_k."""
        raise NotImplementedError

    def blocks(self) -> Iterator[slice]:
        """Blocks of rows whose residuals and products fit into the scratch."""
        row_bytes = len(self.tensors[0]) * self.width * 8 * (2 * len(self.used) + 4)
        step = min(self.max_rows, max(1, scratch_bytes(self.tensors[0].device) // row_bytes))
        for start in range(0, self.rows, step):
            yield slice(start, min(start + step, self.rows))

    def residuals(self, block: slice) -> tuple[Tensor, dict[int, Tensor]]:
        """m, and R_k of the inputs that count, on some rows: float64 [B, rows, width]."""
        center = torch.zeros_like(self.tensors[0][:, block], dtype=torch.float64)
        loaded = {k: self._load(k, block) for k in self.used}
        for k in np.flatnonzero(self.weighing.center.any(0)).tolist():
            x = loaded[k] if k in loaded else self._load(k, block)
            center.addcmul_(x, self.center[k])
        return center, {k: x.sub_(center) for k, x in loaded.items()}

    def _load(self, k: int, block: slice) -> Tensor:
        x = self.tensors[k][:, block].to(torch.float64, copy=True)
        return x if self.scale is None else x.mul_(self.scale[k])

    def _on_device(self, array: Array) -> Tensor:
        """[B, K] as [K, B, 1, 1] and [B] as [B, 1, 1], beside the tensors."""
        return torch.from_numpy(array.T[..., None, None].copy()).to(self.tensors[0].device)


class _Matrices(_Group):
    """Linear layers [B, outputs, inputs]: A_k = R_k^T R_k / ||R_k||^2 + (rho / inputs) I."""

    max_rows = 512

    def __init__(self, tensors: Sequence[Tensor], weighing: Weighing) -> None:
        super().__init__(tensors, weighing)
        self.wide = _is_wide(self.rows, self.width)
        square = (len(tensors[0]), self.width, self.width)
        # omega_k A_k for each input; of wide matrices only their sum is kept
        self.energies = {} if self.wide else {k: self.trust.new_zeros(square) for k in self.used}
        self.total = self.trust.new_zeros(square)
        for block in self.blocks():
            for k, residual in self.residuals(block)[1].items():
                scaled = residual.mul_(self.shares[k].sqrt())
                self.energies.get(k, self.total).baddbmm_(scaled.transpose(1, 2), scaled)
        for k in self.used:
            self.energies.get(k, self.total).diagonal(dim1=1, dim2=2).add_(self._ridge(k)[..., 0])
        for energy in self.energies.values():
            self.total += energy
        self.total.diagonal(dim1=1, dim2=2).add_(self.nobody[..., 0])
        self.norm: Tensor = torch.linalg.matrix_norm(self.total)
        info = self.total.new_empty(0, dtype=torch.int32)
        torch.linalg.cholesky_ex(self.total, out=(self.total, info))

    def _ridge(self, k: int) -> Tensor:
        return self.trust[k] * (self.weighing.ridge / self.width)

    @classmethod
    def problems_at_once(cls, shape: Sequence[int], count: int) -> int:
        kept = 1 if _is_wide(*shape[1:]) else 1 + count
        return max(1, int(MATRICES_BYTES // (kept * shape[2] ** 2 * 8)))

    def in_own_spaces(self, residuals: dict[int, Tensor]) -> dict[int, Tensor]:
        if not self.wide:
            return {k: torch.bmm(r, self.energies[k]) for k, r in residuals.items()}
        own = {k: r * self._ridge(k) for k, r in residuals.items()}
        for block in self.blocks():
            for k, other in self.residuals(block)[1].items():
                products = torch.bmm(residuals[k], other.transpose(1, 2)).mul_(self.shares[k])
                own[k].baddbmm_(products, other)
        return own

    def solve(self, total: Tensor) -> Tensor:
        lower = self.total  # L, of the sum L L^T
        half = torch.linalg.solve_triangular(lower.transpose(1, 2), total, upper=True, left=False)
        solution: Tensor = torch.linalg.solve_triangular(lower, half, upper=False, left=False)
        return solution

    def condition(self) -> Tensor:
        ridge = self.trust.sum(0)[:, 0, 0] * (self.weighing.ridge / self.width)
        return self.norm / ridge


class _Rows(_Group):
    """Embedding tables, and vectors as tables of width 1: A_k is diagonal, one number a row."""

    max_rows = 2**16

    @classmethod
    def problems_at_once(cls, shape: Sequence[int], count: int) -> int:
        return shape[0]

    def in_own_spaces(self, residuals: dict[int, Tensor]) -> dict[int, Tensor]:
        self.total, own = self.nobody, {}
        for k, residual in residuals.items():
            energy = residual.square().sum(2, keepdim=True) * self.shares[k]
            energy += self.trust[k] * (self.weighing.ridge / self.rows)
            own[k] = residual * energy
            self.total = self.total + energy
        return own

    def solve(self, total: Tensor) -> Tensor:
        return total / self.total

    def condition(self) -> Tensor:
        return self.trust.new_full((len(self.tensors[0]),), torch.nan)


def _is_wide(outputs: int, inputs: int) -> bool:
    """Whether R_k (R_k^T R_k) costs less as (R_k R_k^T) R_k."""
    return inputs >= WIDE * outputs


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[B], inner products of the problems."""
    return torch.bmm(a.reshape(len(a), 1, -1), b.reshape(len(b), -1, 1))[:, 0, 0]


def scratch_bytes(device: torch.device) -> int:
    """Scratch for one block of rows: enough rows for matrix products at full speed."""
    return (256 if device.type == "cpu" else 1024) * MIB
