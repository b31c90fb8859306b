"""What stands out among the inputs: strangers, copies, wrong scales, swapped tensors."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median

import numpy as np

from mergekit_yoyo.inspection.remark import Remark, error, note, some, warning
from mergekit_yoyo.inspection.weights import Look
from mergekit_yoyo.record.findings import IGNORED, count_found, odd_sizes, weighed
from mergekit_yoyo.record.layers import by_kind
from mergekit_yoyo.record.quantities import DISTANCE, WEIGHT
from mergekit_yoyo.record.statistics import Array, TensorStatistics, cosines

RELATED = 0.5  # fine-tunes of one base have cosines near 1, strangers near 0
FAR = 10.0  # times as far from the center as the others
NOTABLE = 0.02  # of the weights' size: below, nothing is far


def check_looks(
    looks: Sequence[Look],
    tensors: Sequence[TensorStatistics],
    models: Sequence[str],
    *,
    ours: bool,
) -> list[Remark]:
    """All that the weights themselves give away.

    looks: of every tensor of the merge. tensors: of those that several models share. models: the
    inputs, in the order of the statistics. ours: the method is yoyo_fusion.
    """
    faults = [look.fault for look in looks if look.fault is not None]
    remarks = [error(fault) for fault in faults[:3]]
    if len(faults) > 3:
        remarks.append(error(f"and {len(faults) - 3:,} more tensors with such faults"))
    remarks += _copies(looks)
    matrices = [tensor for tensor in tensors if len(tensor.line.shape) > 1]
    related = cosines(matrices, len(models))
    families = _families(related, {i for tensor in tensors for i in _inputs(tensor)})
    if len(families) > 1:
        remarks += _strangers(related, families, models)
    elif families:
        remarks += _outliers(tensors, matrices, models)
    restores_mean = ours and any(t.line.parameters.get("rescale") == "mean" for t in tensors)
    remarks += map(warning, odd_sizes(tensors, models, restores_mean=restores_mean))
    return [*remarks, *_rejected(tensors, models), *_alone(tensors)]


def _copies(looks: Sequence[Look]) -> Iterator[Remark]:
    met: Counter[tuple[str, str]] = Counter()
    same: Counter[tuple[str, str]] = Counter()
    for look in looks:
        if look.line is not None:
            models = look.line.inputs or []
            met.update((a, b) for k, a in enumerate(models) for b in models[k + 1 :])
        same.update(look.same)
    for (one, other), count in same.items():
        if count == met[one, other]:
            yield warning(f"{one} and {other} are the same weights: they count twice in the merge")
        else:
            yield note(f"{one} and {other} share {count:,} of {met[one, other]:,} tensors")


def _families(related: Array, models: set[int]) -> list[set[int]]:
    """Models put together where the cosine of their weights says fine-tunes; largest first."""
    found = [{model} for model in sorted(models)]
    for pair in combinations(sorted(models), 2):
        if related[pair] >= RELATED:
            joined = [family for family in found if not family.isdisjoint(pair)]
            found = [family for family in found if family not in joined] + [set().union(*joined)]
    return sorted(found, key=len, reverse=True)


def _strangers(related: Array, families: list[set[int]], models: Sequence[str]) -> Iterator[Remark]:
    def nearest_cosine(family: set[int]) -> float:
        rest = set[int]().union(*families) - family
        found = related[np.ix_(sorted(family), sorted(rest))]
        return float(np.max(found, initial=-1.0, where=~np.isnan(found)))

    def named(family: set[int]) -> str:
        return some(sorted(models[i] for i in family))

    if len(families[0]) == len(families[1]):
        yield warning(
            f"no majority of the inputs shares a base: cosines between "
            f"{' | '.join(map(named, families))} are at most "
            f"{max(map(nearest_cosine, families)):.2f}"
        )
        return
    for family in families[1:]:
        yield warning(
            f"{named(family)}: of another base than {named(families[0])}: cosine of the "
            f"weights {nearest_cosine(family):.2f} (fine-tunes of one base: near 1), or spoiled"
        )


def _outliers(
    tensors: Sequence[TensorStatistics],
    matrices: Sequence[TensorStatistics],
    models: Sequence[str],
) -> Iterator[Remark]:
    """Models and tensors that lie elsewhere than the others, among fine-tunes of one base."""
    far = set()
    spreads = {model: distance for model, distance in _usual(matrices).items() if distance}
    for model, distance in spreads.items():
        others = [value for other, value in spreads.items() if other != model]
        if len(others) > 1 and distance > max(FAR * median(others), NOTABLE):
            far.add(model)
            yield warning(
                f"{models[model]}: {distance / median(others):.0f} times as far from the center as "
                f"the others ({distance:.1%} of the weights' size): another base, or noise?"
            )
    usual = {kind: _usual(group) for kind, group in by_kind(tensors).items()}
    strange: dict[int, list[str]] = defaultdict(list)
    for tensor in tensors:
        for model in _inputs(tensor):
            if model not in far and _is_strange(tensor, model, usual[tensor.place.kind][model]):
                cosine = max(_cosine(tensor, model, j) for j in _inputs(tensor) if j != model)
                strange[model].append(f"{tensor.line.name} (cosine {cosine:.3f})")
    if len(models) == 2 and strange:
        yield warning(
            f"{models[0]} and {models[1]} differ as strangers do in "
            f"{some(next(iter(strange.values())))}"
        )
        return
    for model, names in strange.items():
        yield warning(
            f"{models[model]}: unlike the other inputs in {some(names)}, where the rest of it is "
            "like them: swapped, spoiled or retrained?"
        )


def _is_strange(tensor: TensorStatistics, model: int, usual: float) -> bool:
    """Whether a model's tensor is a stranger to all others', or much farther than they are."""
    others = [other for other in _inputs(tensor) if other != model]
    agree = [_cosine(tensor, a, b) for a, b in combinations(others, 2)]
    if all(_cosine(tensor, model, other) < RELATED for other in others):
        return not agree or max(agree) >= RELATED
    distances = DISTANCE.of_tensor(tensor)
    farthest = max(distances[other] for other in others)
    return len(others) > 1 and bool(distances[model] > max(FAR * farthest, FAR * usual, NOTABLE))


def _inputs(tensor: TensorStatistics) -> list[int]:
    return np.flatnonzero(~np.isnan(DISTANCE.of_tensor(tensor))).tolist()


def _cosine(tensor: TensorStatistics, one: int, other: int) -> float:
    """Between two models' weights."""
    return float(1 - tensor.squared_gaps[one, other] / 2)


def _usual(tensors: Sequence[TensorStatistics]) -> dict[int, float]:
    """Each model's distance from the center in the median over the tensors it is an input of."""
    found: dict[int, list[float]] = defaultdict(list)
    for tensor in tensors:
        for model in _inputs(tensor):
            found[model].append(float(DISTANCE.of_tensor(tensor)[model]))
    return {model: median(distances) for model, distances in found.items()}


def _rejected(tensors: Sequence[TensorStatistics], models: Sequence[str]) -> Iterator[Remark]:
    weights = WEIGHT.over(tensors, len(models))
    for i, model in enumerate(models):
        names = [tensor.line.name for tensor in tensors if tensor.rejected[i]]
        if not names:
            continue
        text = f"{model}: yoyo_fusion rejects it in {len(names):,} of {len(weighed(tensors, i)):,}"
        if weights[i] < IGNORED:
            yield warning(f"{text} tensors: the merge hardly follows it")
        else:
            yield note(f"{text} tensors{f' ({some(names)})' if len(names) <= 3 else ''}")


def _alone(tensors: Sequence[TensorStatistics]) -> Iterator[Remark]:
    """Tensors that recall can only average."""
    if alone := count_found(tensors, "alone"):
        yield warning(
            f"consensus: recall has less than three inputs that differ in {alone:,} of "
            f"{len(tensors):,} tensors, and averages them: add a model, or a base model with "
            "center: anchor"
        )
