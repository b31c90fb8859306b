"""What the bench compares: our method and its options, mergekit's own methods, the papers' rivals.

mergekit's methods are its own code, called on tensors in float32; what they need beyond defaults
is a grid, of which the bench shows the setting that is best on the held-out text itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import rivals
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from models import EMBEDDING, is_linear
from reading import Weights

from mergekit_yoyo.algorithm import fuse

Grams = Callable[[], list[Weights]]  # of each expert, the inputs' second moments by weight name
Merge = Callable[[Weights, list[Weights], Grams], Weights]
Differences = Merge  # what is to be added to the base, of all tensors or some


@dataclass(frozen=True)
class Method:
    """A method of merging, with the settings that are tried.

    Attributes:
        label: in the table.
        settings: by name; one of the name "" is the method as it comes.
        group: 0 ours, 1 mergekit's, 2 papers'.
        only: the number of experts with which it is shown, of the first base; None: any, of any.
        counts: it is shown with any number of any base; else of the first with two and three.
        broken: whether it is shown with a broken further model.
        small: whether `--small` has it.
        climbing: whether its settings are tried until one is worse than the one before: those of a
            factor, in which the loss has one lowest point.
    """

    label: str
    settings: Mapping[str, Merge]
    group: int
    only: int | None = None
    counts: bool = True
    broken: bool = False
    small: bool = False
    climbing: bool = False


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


def mergekits(
    name: str, *, based: bool = True, differences: bool = False, **parameters: object
) -> Merge:
    """A merge by mergekit's own code for a method; `weight` is 1 for each model. differences: what
    is added to the base, found with a base of zeros."""
    method = registry.get(name)
    if any(parameter.name == "weight" for parameter in method.spec.input_parameters):
        parameters.setdefault("weight", 1.0)

    def merge(base: Weights, experts: list[Weights], _: Grams) -> Weights:
        torch.manual_seed(0)  # dare and della draw
        merged = {}
        for key, origin in base.items():
            tensors = [*([origin] if based else []), *(x[key] for x in experts)]
            if differences:
                tensors = [x.float() - origin.float() for x in tensors]
            group = TensorGroup.from_tensors(tensors, base_index=0 if based else None, name=key)
            (merged[key],) = method([group], parameters=parameters, dtype=torch.float32)
        return merged

    return merge


def of_matrices(
    of_matrix: rivals.OfMatrix, *factors: float, reads: bool = False
) -> dict[str, Merge]:
    """Merges of linear layers by a paper's method; others are the mean. factors: on the
    differences of the merge, a setting each. reads: it takes Grams."""

    def differences(base: Weights, experts: list[Weights], grams: Grams) -> Weights:
        moments = grams() if reads else []
        found = {}
        for name, origin in base.items():
            if is_linear(name, origin):
                taus = torch.stack([x[name].float() - origin.float() for x in experts])
                more = [torch.stack([x[name] for x in moments])] if reads else []
                found[name] = of_matrix(taus, *more)
        return found

    named = {f"factor {factor:g}" if factors else "": factor for factor in factors or (1.0,)}
    return scaled(differences, named)


def scaled(differences: Differences, factors: Mapping[str, float]) -> dict[str, Merge]:
    """Merges that are the base and a factor times what a method finds, which it is asked for once;
    a tensor that it says nothing of is the mean. factors: by the name of the setting."""

    def by(factor: float) -> Merge:
        def merge(base: Weights, experts: list[Weights], grams: Grams) -> Weights:
            found = _found_last.of(differences, base, experts, grams)
            return {
                name: origin.float() + factor * found[name]
                if name in found
                else torch.stack([x[name].float() for x in experts]).mean(0)
                for name, origin in base.items()
            }

        return merge

    return {name: by(factor) for name, factor in factors.items()}


class _FoundLast:
    """The differences that were found last: one method's, since they are as large as a model."""

    def __init__(self) -> None:
        self._of: tuple[object, object] | None = None
        self._found: Weights = {}

    def of(self, find: Differences, base: Weights, experts: list[Weights], grams: Grams) -> Weights:
        if self._of is None or self._of[0] is not find or self._of[1] is not experts:
            self._found = {}
            self._found = find(base, experts, grams)
            self._of = (find, experts)
        return self._found


_found_last = _FoundLast()


def arithmetic(
    name: str, factors: Sequence[float], label: str = "lambda ", **parameters: object
) -> dict[str, Merge]:
    """Merges by one of mergekit's methods whose `lambda` scales what it adds to the base. label: of
    a setting, before the factor."""
    differences = mergekits(name, differences=True, **parameters)
    return scaled(differences, {f"{label}{factor:g}": factor for factor in factors})


_FACTORS = (0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
_SPARSE = {0.5: (1.0, 1.5), 0.2: (1.5,)}  # factors by density


def _first_is_base(_: Weights, experts: list[Weights], grams: Grams) -> Weights:
    return mergekits("arcee_fusion")(experts[0], experts[1:], grams)


def _recall(**options: object) -> dict[str, Merge]:
    return {"": ours(consensus="recall", **options)}


def _grid(name: str, **always: object) -> dict[str, Merge]:
    found = {}
    for density, factors in _SPARSE.items():
        label = f"density {density:g}, lambda "
        found |= arithmetic(name, factors, label, density=density, **always)
    return found


def _ace(*epsilons: float) -> dict[str, Merge]:
    found = {}
    for epsilon in epsilons:  # the authors' is 0.01; it stands beside sums of squared differences
        (found[f"epsilon {epsilon:g}"],) = of_matrices(
            partial(rivals.ace, epsilon=epsilon)
        ).values()
    return found


_VARIANTS: dict[str, dict[str, object]] = {
    "coordinate_median": {"center": "coordinate_median"},
    "welsch": {"weight_function": "welsch"},
    "deviations: median": {"deviations": "median"},
    "rank_by: principal": {"rank_by": "principal"},
    "rank_by: noise": {"rank_by": "noise"},
    "scale_by: root": {"scale_by": "root"},
    "matrix_boost": {"matrix_boost": True},
}

METHODS = [
    Method("linear", {"": mergekits("linear", based=False)}, 1, broken=True, small=True),
    Method("recall, base as anchor", _recall(anchored=True), 0, broken=True, small=True),
    Method("recall, base as anchor, ridge 10", _recall(anchored=True, ridge=10.0), 0),
    Method("recall, base as anchor, ridge 1", _recall(anchored=True, ridge=1.0), 0, only=3),
    Method(
        "recall, base as anchor, prior 2/K", _recall(anchored=True, recall_prior=2 / 3), 0, only=3
    ),
    Method("recall", _recall(), 0, broken=True, small=True),
    Method("recall, ridge 10", _recall(ridge=10.0), 0, only=3),
    Method("recall, twice the strength", _recall(recall_strength=4.0), 0, only=3),
    Method("tukey", {"": ours()}, 0, broken=True, small=True),
    Method("tukey, base as anchor", {"": ours(anchored=True)}, 0, only=3),
    *(
        Method(f"tukey, {label}", {"": ours(**options)}, 0, only=3, broken="center" in options)
        for label, options in _VARIANTS.items()
    ),
    Method(
        "task arithmetic",
        arithmetic("task_arithmetic", _FACTORS, "factor "),
        1,
        broken=True,
        small=True,
        climbing=True,
    ),
    Method("ties", _grid("ties"), 1, broken=True),
    Method("dare_ties", _grid("dare_ties", normalize=True), 1, only=3),
    Method("della", _grid("della", normalize=True), 1, only=3),
    Method("sce", {f"top {k:g}": mergekits("sce", select_topk=k) for k in (0.5, 1.0)}, 1),
    Method("model_stock", {"": mergekits("model_stock")}, 1, only=3),
    Method("karcher", {"": mergekits("karcher", based=False)}, 1, only=3),
    Method("multislerp", {"": mergekits("multislerp", based=False)}, 1, only=3),
    Method(
        "nuslerp",
        {"": mergekits("nuslerp", based=False), "of differences": mergekits("nuslerp")},
        1,
        only=2,
    ),
    Method("arcee_fusion", {"": _first_is_base}, 1, only=2),
    Method("TSV-M", of_matrices(rivals.tsv_m, 0.65, 1.0), 2),
    Method("Iso-C", of_matrices(rivals.iso_c, 0.65, 1.0), 2, counts=False),
    Method("Iso-CTS", of_matrices(rivals.iso_cts, 0.65, 1.0), 2, only=3),
    Method("SVC of task arithmetic", of_matrices(rivals.svc, 0.5, 0.8), 2, counts=False),
    Method("ACTMat", of_matrices(rivals.actmat), 2, counts=False),
    Method("TACT", of_matrices(rivals.tact), 2, counts=False),
    Method("ACE", _ace(1e-2, 1e-4, 1e-6), 2, counts=False),
    Method("WUDI", of_matrices(rivals.wudi), 2, only=3),
    Method("RegMean, with the inputs", of_matrices(rivals.regmean, reads=True), 2, counts=False),
]
