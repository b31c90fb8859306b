"""Methods of papers that mergekit does not have, written from them, for the bench alone.

Each takes the difference matrices of one linear layer, `taus` [K, out, in] in float32, and returns
the difference of the merge, before a factor. Embeddings and vectors, of which the papers speak
little, are the mean of the differences.

ACTMat, TACT and ACE follow what their authors' programs do (marawangamal/actmat and
unravel-xu/ACE-Merging on GitHub), where the papers leave things open.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import solve, svd

# of a linear layer; grams: [K, in, in], the inputs' second moments, for who asks for them
OfMatrix = Callable[..., Tensor]


def tsv_m(taus: Tensor) -> Tensor:
    """TSV-M (2412.00081, algorithm 1): the first 1/K of each model's singular directions, and what
    is near in them whitened apart."""
    kept = max(1, min(taus.shape[1:]) // len(taus))
    left, sizes, right = svd(taus, full_matrices=False)
    left = torch.cat(tuple(left[:, :, :kept]), dim=1)
    right = torch.cat(tuple(right[:, :kept]), dim=0)
    return _whitened(left) @ (sizes[:, :kept].reshape(-1, 1) * _whitened(right))


def iso_c(taus: Tensor) -> Tensor:
    """Iso-C (2502.04959, equation 5): the sum, with all singular values at their mean."""
    left, sizes, right = svd(taus.sum(0), full_matrices=False)
    return sizes.mean() * left @ right


def iso_cts(taus: Tensor, common: float = 0.8) -> Tensor:
    """Iso-CTS (2502.04959, algorithm 1): 0.8 of the directions are those of the sum, the others
    each model's own outside of them; whitened, all singular values at their mean."""
    left, sizes, right = svd(taus.sum(0), full_matrices=False)
    own = int((1 - common) * len(sizes)) // len(taus)
    shared = len(sizes) - own * len(taus)
    basis = left[:, :shared]
    outside = taus - basis @ (basis.T @ taus)
    lefts, owns, rights = svd(outside, full_matrices=False)
    left = torch.cat((basis, *lefts[:, :, :own]), dim=1)
    right = torch.cat((right[:shared], *rights[:, :own]), dim=0)
    scale = torch.cat((sizes[:shared], owns[:, :own].flatten())).mean()
    return scale * _whitened(left) @ _whitened(right)


def svc(taus: Tensor, floor: float = 0.1) -> Tensor:
    """SVC (2602.05536, section 4) of task arithmetic: along each left singular vector of the sum,
    its size over what it is of each model's own response, at least `floor`, on the mean."""
    merged = taus.sum(0)
    left, sizes, right = svd(merged, full_matrices=False)
    response, own = sizes[:, None] * right, left.T @ taus  # [r, in], [K, r, in]
    over = (response * own).sum(-1) / own.square().sum(-1).clamp(min=1e-20)
    calibrated = sizes * len(taus) / over.clamp(min=floor).sum(0)
    return calibrated * left @ right


def wudi(taus: Tensor, steps: int = 300, rate: float = 1e-5) -> Tensor:
    """WUDI (2503.08099, equation 11): Adam from the sum on sum_k |(t - t_k) t_k^T|^2 / |t_k|^2."""
    moments = taus.mT @ taus / taus.square().sum((1, 2), keepdim=True)
    total, wanted = moments.sum(0), (taus @ moments).sum(0)
    found = taus.sum(0).requires_grad_()
    optimizer = torch.optim.Adam([found], lr=rate)
    for _ in range(steps):
        found.grad = 2 * (found.detach() @ total - wanted)
        optimizer.step()
    return found.detach()


def regmean(taus: Tensor, grams: Tensor, off_diagonal: float = 0.9) -> Tensor:
    """RegMean (2212.09849, equation 2), with the true inputs: what data could do."""
    diagonal = torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
    return _regression(taus, off_diagonal * grams + (1 - off_diagonal) * diagonal)


def actmat(taus: Tensor) -> Tensor:
    """ACTMat (2604.01329): RegMean with each difference's own second moment for its inputs'."""
    return _pseudo_regression(taus, taus.mT @ taus)


def tact(taus: Tensor, kept: float = 0.5) -> Tensor:
    """TACT (2604.01329): ACTMat with second moments of the larger half of each difference."""
    sizes = taus.abs().flatten(1)
    least = sizes.kthvalue(max(1, round((1 - kept) * sizes.shape[1])), dim=1).values
    trimmed = taus * (taus.abs() > least[:, None, None])
    return _pseudo_regression(taus, trimmed.mT @ trimmed)


def ace(taus: Tensor, epsilon: float) -> Tensor:
    """ACE (2603.02945): RegMean with second moments of the centered differences and a ridge.

    Where the models differ much in size, the moments are of trace 1, and what they leave of the
    differences is added with its leading singular values at their mean (`_refined`).
    """
    centered = taus - taus.mean(1, keepdim=True)
    moments = centered.mT @ centered
    sizes = taus.square().sum((1, 2))
    logs = (sizes + 1e-12).log()
    unlike = bool(logs.var() / logs.mean().square() > 0.3)
    ridges = torch.full_like(sizes, epsilon)
    if unlike:
        traces = moments.diagonal(dim1=1, dim2=2).sum(1)
        moments, ridges = moments / traces[:, None, None], ridges / traces
    regular = moments + ridges[:, None, None] * torch.eye(moments.shape[-1])
    prior = moments.sum(0).mean(0) / (sizes.mean() if unlike else 1)  # the same for every row
    total = regular.sum(0)
    found = solve(total + prior, (centered @ regular).sum(0), left=False)
    return found + _refined(found, taus, moments - total / len(taus)) if unlike else found


def _refined(found: Tensor, taus: Tensor, offsets: Tensor, leading: float = 0.3) -> Tensor:
    left, sizes, right = svd(found + (taus @ offsets).sum(0), full_matrices=False)
    kept = int(leading * len(sizes))
    return sizes[:kept].mean() * left[:, :kept] @ right[:kept]


def _pseudo_regression(taus: Tensor, moments: Tensor) -> Tensor:
    """sum_k t_k C_k times the pseudo-inverse of sum_k C_k in float32, whose cut (10^-4 of the
    largest eigenvalue) is all that keeps it regular."""
    return (taus @ moments).sum(0) @ torch.linalg.pinv(moments.sum(0), hermitian=True)


def _regression(taus: Tensor, grams: Tensor) -> Tensor:
    """argmin over t of sum_k |(t - t_k) G_k^(1/2)|^2; a millionth of the mean energy is added, for
    the sum may be singular."""
    total = grams.sum(0).double()
    total += 1e-6 * total.diagonal().mean() * torch.eye(len(total))
    return solve(total, (taus.double() @ grams.double()).sum(0), left=False).float()


def _whitened(basis: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns or rows (Procrustes); in float64, since bases
    that are nearly orthonormal have many equal singular values."""
    left, _, right = svd(basis.double(), full_matrices=False)
    return (left @ right).float()
