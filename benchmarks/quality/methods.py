"""What the bench compares: our method and its options, mergekit's own methods, the papers' rivals.

mergekit's methods are its own code, called on tensors in float32; what they need beyond defaults
is a grid, of which the bench shows the setting that is best on the held-out text itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import rivals
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from torch import Tensor

from mergekit_yoyo.algorithm import fuse

Weights = Mapping[str, Tensor]
Grams = Callable[[], list[Weights]]  # of each expert, the inputs' second moments by weight name
Merge = Callable[[Weights, list[Weights], Grams], Weights]
EMBEDDING = "embed_tokens"


@dataclass(frozen=True)
class Method:
    """A method of merging, with the settings that are tried.

    Attributes:
        label: in the table.
        settings: by name; one of the name "" is the method as it comes.
        group: 0 ours, 1 mergekit's, 2 papers'.
        only: the number of models with which it is shown; None: any.
        small: whether `--small` has it.
        reads: whether it asks for the inputs of the experts, which a broken model has none of.
    """

    label: str
    settings: Mapping[str, Merge]
    group: int
    only: int | None = None
    small: bool = False
    reads: bool = False


def ours(*, anchored: bool = False, **options: object) -> Merge:
    """A merge by our method, tensor by tensor."""

    def merge(base: Weights, experts: list[Weights], _: Grams) -> Weights:
        center = {"center": "anchor", "anchor": 0} if anchored else {}
        return {
            name: fuse(
                [*([base[name]] if anchored else []), *(x[name] for x in experts)],
                kind="embedding" if EMBEDDING in name else "auto",
                **options,
                **center,
            ).tensor
            for name in base
        }

    return merge


def mergekits(name: str, *, based: bool = True, **parameters: object) -> Merge:
    """A merge by mergekit's own code for a method; `weight` is 1 for each model."""
    method = registry.get(name)
    if any(parameter.name == "weight" for parameter in method.spec.input_parameters):
        parameters.setdefault("weight", 1.0)

    def merge(base: Weights, experts: list[Weights], _: Grams) -> Weights:
        torch.manual_seed(0)  # dare and della draw
        merged = {}
        for key, origin in base.items():
            tensors = [*([origin] if based else []), *(x[key] for x in experts)]
            group = TensorGroup.from_tensors(tensors, base_index=0 if based else None, name=key)
            (merged[key],) = method([group], parameters=parameters, dtype=torch.float32)
        return merged

    return merge


def of_matrices(of_matrix: rivals.OfMatrix, factor: float = 1.0, *, reads: bool = False) -> Merge:
    """A merge of linear layers by a paper's method; others are the mean. reads: it takes Grams."""

    def merge(base: Weights, experts: list[Weights], grams: Grams) -> Weights:
        merged, moments = {}, grams() if reads else []
        for name, origin in base.items():
            taus = torch.stack([x[name].float() - origin.float() for x in experts])
            if origin.ndim != 2 or EMBEDDING in name:
                merged[name] = origin.float() + taus.mean(0)
                continue
            more = [torch.stack([moment[name] for moment in moments])] if reads else []
            merged[name] = origin.float() + factor * of_matrix(taus, *more)
        return merged

    return merge


def _scaled(of_matrix: rivals.OfMatrix, *factors: float) -> dict[str, Merge]:
    return {f"factor {factor:g}": of_matrices(of_matrix, factor) for factor in factors}


_SPARSE = {
    f"density {density:g}, lambda {factor:g}": {"density": density, "lambda": factor}
    for density, factor in ((0.5, 1.0), (0.5, 1.5), (0.2, 1.5))
}
_FACTORS = (0.4, 0.5, 0.65, 0.8)


def _first_is_base(_: Weights, experts: list[Weights], grams: Grams) -> Weights:
    return mergekits("arcee_fusion")(experts[0], experts[1:], grams)


def _recall(**options: object) -> dict[str, Merge]:
    return {"": ours(consensus="recall", **options)}


def _grid(name: str, **always: object) -> dict[str, Merge]:
    return {label: mergekits(name, **setting, **always) for label, setting in _SPARSE.items()}


METHODS = [
    Method("linear", {"": mergekits("linear", based=False)}, 1, small=True),
    Method("recall, base as anchor", _recall(anchored=True), 0, small=True),
    Method("recall, base as anchor, ridge 3", _recall(anchored=True, ridge=3.0), 0),
    Method("recall, base as anchor, prior 1", _recall(anchored=True, recall_prior=1.0), 0),
    Method("recall", _recall(), 0, small=True),
    Method("recall, ridge 3", _recall(ridge=3.0), 0),
    Method("recall, twice the strength", _recall(recall_strength=4.0), 0),
    Method("tukey", {"": ours()}, 0, small=True),
    Method("tukey, base as anchor", {"": ours(anchored=True)}, 0),
    Method("tukey, coordinate_median", {"": ours(center="coordinate_median")}, 0, only=3),
    Method("tukey, welsch", {"": ours(weight_function="welsch")}, 0, only=3),
    Method("tukey, deviations: median", {"": ours(deviations="median")}, 0, only=3),
    Method("tukey, rank_by: principal", {"": ours(rank_by="principal")}, 0, only=3),
    Method("tukey, rank_by: noise", {"": ours(rank_by="noise")}, 0, only=3),
    Method("tukey, scale_by: root", {"": ours(scale_by="root")}, 0, only=3),
    Method("tukey, matrix_boost", {"": ours(matrix_boost=True)}, 0, only=3),
    Method(
        "task arithmetic",
        {f"factor {x:g}": mergekits("task_arithmetic", **{"lambda": x}) for x in _FACTORS},
        1,
        small=True,
    ),
    Method("ties", _grid("ties"), 1),
    Method("dare_ties", _grid("dare_ties", normalize=True), 1),
    Method("della", _grid("della", normalize=True), 1),
    Method("sce", {f"top {k:g}": mergekits("sce", select_topk=k) for k in (0.5, 1.0)}, 1),
    Method("model_stock", {"": mergekits("model_stock")}, 1),
    Method("karcher", {"": mergekits("karcher", based=False)}, 1),
    Method("multislerp", {"": mergekits("multislerp", based=False)}, 1),
    Method(
        "nuslerp",
        {"": mergekits("nuslerp", based=False), "of differences": mergekits("nuslerp")},
        1,
        only=2,
    ),
    Method("arcee_fusion", {"": _first_is_base}, 1, only=2),
    Method("TSV-M", _scaled(rivals.tsv_m, 0.65, 1.0), 2),
    Method("Iso-C", _scaled(rivals.iso_c, 0.65, 1.0), 2),
    Method("Iso-CTS", _scaled(rivals.iso_cts, 0.65, 1.0), 2),
    Method("SVC of task arithmetic", _scaled(rivals.svc, 0.5, 0.8), 2),
    Method("WUDI", {"": of_matrices(rivals.wudi)}, 2),
    Method(
        "RegMean, with the inputs", {"": of_matrices(rivals.regmean, reads=True)}, 2, reads=True
    ),
]
