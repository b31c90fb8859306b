"""The passes over the tensors: inner products in, weighted sums out, in chunks of fixed size.

Nothing of the size of a tensor is allocated but the result. Every function takes K tensors shaped
[B, ...]: B independent problems of one shape (B = 1 for an ordinary tensor, the experts of a
packed one), of any dtype and strides, and reads them tile by tile into a scratch buffer:

- `input_gram`: inner products of the inputs, or of x_p and all x_k - x_p (pivot p),
- `squared_norms`: ||x_k||^2,
- `median_gram`: inner products of the coordinate-wise median of the scaled inputs and of their
  residuals from it,
- `weighted_sum` and `weighted_median_sum`: the results of step 9.

Inner products are float64, chunk by chunk. float32 would be a little faster and is not enough:
fine-tunes of one model leave nearly equal singular values, whose directions turn with errors of
1e-9. Nothing here waits for the device: the caller fetches one small matrix.
"""

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from mergekit_yoyo.algorithm.center import median_network
from mergekit_yoyo.algorithm.robust import Array
from mergekit_yoyo.algorithm.rounding import Destination, Rounding
from mergekit_yoyo.algorithm.tolerances import HALF_OF_WEIGHT

BLOCK = 1024  # elements in one matrix product; many of them make a batch
HALVED_FROM = 5  # rows from which the symmetry of the products is worth a second call
SMALL = 2**16  # elements up to which float64 costs nothing worth saving
MIB = 2**20
Tile = tuple[slice, ...]


def scratch_bytes(device: torch.device) -> int:
    """Scratch for one pass: 3 MiB a thread, 256 MiB on a GPU.

    Enough that an operation on a chunk outweighs the start of its threads, and little enough to
    stay in cache and to cost few page faults.
    """
    return (3 * torch.get_num_threads() if device.type == "cpu" else 256) * MIB


def tiles(shape: Sequence[int], max_elements: int) -> Iterator[Tile]:
    """Slices that cover `shape` ([B, ...]) in tiles of at most `max_elements` (at least 1).

    A tile spans several problems only where it holds them whole.
    """
    axis = next(a for a in range(len(shape)) if prod(shape[a + 1 :]) <= max_elements)
    step = max_elements // prod(shape[axis + 1 :])
    for outer in np.ndindex(*shape[:axis]):
        lead = tuple(slice(i, i + 1) for i in outer)
        for start in range(0, shape[axis], step):
            yield (*lead, slice(start, min(start + step, shape[axis])))


def flattened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors [B, ...] viewed as [B, N] where all their strides allow it, else as they are."""
    flat = []
    for x in tensors:
        try:
            flat.append(x.view(x.shape[0], -1))
        except RuntimeError:  # strided: tiles are cut from the original axes
            return list(tensors)
    return flat


class _Scratch:
    """Rows for one tile at a time, padded with zeros to whole blocks.

    temporary: rows that torch allocates besides, counted in the budget.
    """

    def __init__(
        self, rows: int, like: Tensor, dtype: torch.dtype = torch.float64, temporary: int = 0
    ) -> None:
        row_bytes = (rows + temporary) * dtype.itemsize
        budget = scratch_bytes(like.device) // row_bytes // BLOCK * BLOCK
        budget = max(budget, BLOCK)  # hundreds of inputs
        problem = self._padded(prod(like.shape[1:]))
        size = min(budget, like.shape[0] * problem)
        whole_problems = size // problem * prod(like.shape[1:])
        self.max_elements = whole_problems or size
        self._buffer = torch.empty((rows, size), dtype=dtype, device=like.device)

    @staticmethod
    def _padded(n: int) -> int:
        width = min(BLOCK, n)
        return -(-n // width) * width

    def rows(self, tile_shape: Sequence[int]) -> Tensor:
        """[rows, g, n_padded] for a tile of g problems with n elements each; padding zeroed."""
        g, n = tile_shape[0], prod(tile_shape[1:])
        padded = self._padded(n)
        rows = self._buffer[:, : g * padded].view(-1, g, padded)
        rows[:, :, n:] = 0
        return rows


def _inner_products(rows: Tensor) -> Tensor:
    """[g, R, R] inner products of the rows [R, g, n]."""
    count, g, n = rows.shape
    blocks = rows.reshape(count, -1, min(BLOCK, n)).transpose(0, 1)
    half = count // 2 if count >= HALVED_FROM else count
    left = torch.bmm(blocks, blocks[:, :half].transpose(1, 2))
    products = left.view(g, -1, count, half).sum(1)
    if half == count:
        return products
    # the matrix is symmetric: a quarter of it need not be computed
    rest = torch.bmm(blocks[:, half:], blocks[:, half:].transpose(1, 2))
    lower = torch.cat(
        (products[:, half:].transpose(1, 2), rest.view(g, -1, *rest.shape[1:]).sum(1)), 1
    )
    return torch.cat((products, lower), dim=2)


def input_gram(tensors: Sequence[Tensor], pivot: int | None) -> Tensor:
    """[B, K, K] float64 Gram matrix of the x_k; with a pivot, of x_p (row p) and x_k - x_p.

    Fine-tunes differ by 1e-1 to 1e-4 of their norm, so their distances cancel in a Gram of the
    inputs to 1e-8 at worst, which is enough for inputs of single precision; for float64 ones
    differences are taken first.
    """
    tensors = flattened(tensors)
    first = tensors[0]
    scratch = _Scratch(len(tensors), first)
    gram = first.new_zeros((first.shape[0], len(tensors), len(tensors)), dtype=torch.float64)
    for tile in tiles(first.shape, scratch.max_elements):
        rows = scratch.rows(first[tile].shape)
        _load(rows, tensors, tile)
        if pivot is not None:
            for k in range(len(tensors)):
                if k != pivot:
                    rows[k].sub_(rows[pivot])
        gram[tile[0]] += _inner_products(rows)
    return gram


def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """[B, K] float64: ||x_k||^2."""
    tensors = flattened(tensors)
    first = tensors[0]
    scratch = _Scratch(1, first)
    norms = first.new_zeros((first.shape[0], len(tensors)), dtype=torch.float64)
    for tile in tiles(first.shape, scratch.max_elements):
        shape = first[tile].shape
        n = prod(shape[1:])
        rows = scratch.rows(shape)
        for k, x in enumerate(tensors):
            rows[0, :, :n].view(shape).copy_(x[tile])
            blocks = rows.view(shape[0], -1, min(BLOCK, n))
            norms[tile[0], k] += torch.linalg.vector_norm(blocks, dim=2).square().sum(1)
    return norms


def median_gram(tensors: Sequence[Tensor], factors: Tensor, priors: Array) -> Tensor:
    """[B, K+1, K+1] float64 Gram matrix of m (row 0) and R_k = u_k - m, u_k = factors_k x_k.

    factors: [B, K] float64 on the device; m is the coordinate-wise median of the u_k.
    """
    tensors = flattened(tensors)
    first, k = tensors[0], len(tensors)
    scratch = _Scratch(2 * k + 3, first)
    gram = first.new_zeros((first.shape[0], k + 1, k + 1), dtype=torch.float64)
    for tile in tiles(first.shape, scratch.max_elements):
        rows = scratch.rows(first[tile].shape)
        center, units = rows[0], rows[1 : k + 1]
        _load_scaled(units, tensors, factors, tile)
        _median_into(center, units, rows[k + 1 :], priors)
        units.sub_(center)
        gram[tile[0]] += _inner_products(rows[: k + 1])
    return gram


def weighted_sum(tensors: Sequence[Tensor], weights: Array, out: Destination) -> Tensor:
    """Write sum_k weights_k x_k to `out`, added in float32 (see `_adding_dtype`), rounded once.

    weights: [B, K] on the host. Gives what rounding lost, [B] (`Rounding.lost`).
    """
    *tensors, merge = flattened([*tensors, out.tensor])
    rounding = Rounding(out.through(merge))
    # one problem needs no row for products, but torch converts an input to one of its own
    dtype = _adding_dtype(merge, len(tensors))
    scratch = _Scratch(1 if len(merge) == 1 else 2, merge, dtype, temporary=1)
    on_device = torch.from_numpy(weights).to(device=merge.device, dtype=dtype)
    for tile in tiles(merge.shape, scratch.max_elements):
        shape = merge[tile].shape
        rows = scratch.rows(shape)
        total, product = (row[:, : prod(shape[1:])].view(shape) for row in (rows[0], rows[-1]))
        total.zero_()
        _add_weighted(total, product, tensors, weights[tile[0]], on_device[tile[0]], tile)
        rounding.write(tile, total)
    return rounding.lost


def weighted_median_sum(
    tensors: Sequence[Tensor],
    scale: Array,
    center_weight: Array,
    weights: Array,
    priors: Array,
    out: Destination,
) -> Tensor:
    """Write center_weight m + sum_k weights_k x_k to `out`, m as in `median_gram`.

    center_weight: [B]; weights: [B, K]. Gives what rounding lost, [B] (`Rounding.lost`).
    """
    *tensors, merge = flattened([*tensors, out.tensor])
    rounding = Rounding(out.through(merge))
    k = len(tensors)
    dtype = _adding_dtype(merge, k)
    scratch = _Scratch(2 * k + 3, merge, dtype, temporary=1)
    factors, center_factor, on_device = (
        torch.from_numpy(array).to(device=merge.device, dtype=dtype)
        for array in (scale, center_weight[:, None], weights)
    )
    for tile in tiles(merge.shape, scratch.max_elements):
        shape = merge[tile].shape
        rows = scratch.rows(shape)
        _load_scaled(rows[1 : k + 1], tensors, factors, tile)
        _median_into(rows[0], rows[1 : k + 1], rows[k + 1 :], priors)
        rows[0].mul_(center_factor[tile[0]])
        total, product = (row[:, : prod(shape[1:])].view(shape) for row in (rows[0], rows[1]))
        _add_weighted(total, product, tensors, weights[tile[0]], on_device[tile[0]], tile)
        rounding.write(tile, total)
    return rounding.lost


def _adding_dtype(out: Tensor, count: int) -> torch.dtype:
    """float32, or float64 where it shows or costs nothing.

    The mean of two neighboring bfloat16 values lies exactly between them, and float32 round-off
    would toss a coin for each such tie; of very many inputs the round-off adds up.
    """
    small = out.numel() <= SMALL
    enough = out.dtype != torch.float64 and 2 < count <= 16 and not small
    return torch.float32 if enough else torch.float64


def _add_weighted(
    total: Tensor,
    product: Tensor,
    tensors: Sequence[Tensor],
    weights: Array,
    on_device: Tensor,
    tile: Tile,
) -> None:
    """total += sum_k weights_k x_k on one tile; `product` is scratch.

    weights: [g, K] of the tile's problems on the host, and the same on the device.
    """
    if len(weights) == 1:  # scalars: the accumulator takes the input as it is
        for x, weight in zip(tensors, weights[0].tolist(), strict=True):
            if weight != 0.0:
                total.add_(x[tile], alpha=weight)
        return
    for k, x in enumerate(tensors):
        product.copy_(x[tile])
        total.add_(product.mul_(on_device[:, k].view(-1, *[1] * (total.ndim - 1))))


def _load(rows: Tensor, tensors: Sequence[Tensor], tile: Tile) -> None:
    """Rows [K, g, n_padded] = one tile of the K tensors; the padding is left alone."""
    shape = tensors[0][tile].shape
    n = prod(shape[1:])
    for row, x in zip(rows, tensors, strict=True):
        row[:, :n].view(shape).copy_(x[tile])


def _load_scaled(units: Tensor, tensors: Sequence[Tensor], factors: Tensor, tile: Tile) -> None:
    _load(units, tensors, tile)
    for k in range(len(tensors)):
        units[k].mul_(factors[tile[0], k : k + 1])


def _median_into(center: Tensor, units: Tensor, scratch: Tensor, priors: Array) -> None:
    """Coordinate-wise median of the K rows of `units` by minima and maxima, no sort; where the
    rows do not count alike, `priors` [K], by a sort.

    scratch: K + 2 rows. A comparator writes to free rows of it, so `units` is never copied.
    """
    if (priors != priors[0]).any():
        _weighted_median_into(center, units, priors)
        return
    k = len(units)
    place, free = list(units), list(scratch)
    owned = [False] * k
    for i, j, keep_min, keep_max in median_network(k):
        low, high = place[i], place[j]
        lower, upper = owned[i], owned[j]
        for kept, at, select in ((keep_min, i, torch.minimum), (keep_max, j, torch.maximum)):
            if kept:
                place[at], owned[at] = select(low, high, out=free.pop()), True
        free += [row for row, mine in ((low, lower), (high, upper)) if mine]
    if k % 2:
        center.copy_(place[k // 2])
    else:
        torch.add(place[k // 2 - 1], place[k // 2], out=center)
        center.mul_(0.5)


def _weighted_median_into(center: Tensor, units: Tensor, priors: Array) -> None:
    """Coordinate-wise weighted median of the K rows, the mean of two where half lies between."""
    ordered, order = units.sort(dim=0)
    cumulative = torch.from_numpy(priors).to(units.device)[order].cumsum(0)
    half = float(priors.sum()) / 2
    slack = HALF_OF_WEIGHT * half
    # argmax finds the first of equals
    lower, upper = (
        reached.byte().argmax(0, keepdim=True)
        for reached in (cumulative >= half - slack, cumulative > half + slack)
    )
    middle = ordered.gather(0, lower).add_(ordered.gather(0, upper))
    torch.mul(middle[0], 0.5, out=center)
