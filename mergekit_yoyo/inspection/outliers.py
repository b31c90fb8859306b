"""What stands out among the inputs: strangers, copies, wrong scales, swapped tensors."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from mergekit_yoyo.inspection.distances import (
    TensorDistances,
    families,
    grouped,
    mean_cosine,
    relative_size,
)
from mergekit_yoyo.inspection.remark import Remark, error, note, some, warning
from mergekit_yoyo.inspection.weights import Look

RELATED = 0.5  # fine-tunes of one base have cosines near 1, strangers near 0
FAR = 10.0  # times as far from the center as the others
NOTABLE = 0.02  # of the weights' size: below, nothing is far
SIZES = (0.5, 2.0)  # times the others' norm: beyond, a model has another scale
IGNORED = 0.1  # mean weight of a model that the merge hardly follows


def check_looks(looks: Sequence[Look], tensors: Sequence[TensorDistances]) -> list[Remark]:
    """All that the weights themselves give away.

    looks: of every tensor of the merge. tensors: of those that several models share.
    """
    faults = [look.fault for look in looks if look.fault is not None]
    remarks = [error(fault) for fault in faults[:3]]
    if len(faults) > 3:
        remarks.append(error(f"and {len(faults) - 3:,} more tensors with such faults"))
    remarks += _copies(looks)
    models = list(dict.fromkeys(model for tensor in tensors for model in tensor.distances))
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    found = families(matrices, models, RELATED)
    if len(found) > 1:
        remarks += _strangers(matrices, found)
    elif found:
        remarks += _outliers(tensors, matrices, models)
    remarks += _sizes(matrices, models)
    return [*remarks, *_rejected(looks)]


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


def _strangers(matrices: Sequence[TensorDistances], found: list[set[str]]) -> Iterator[Remark]:
    def nearest_cosine(family: set[str]) -> float:
        rest = set[str]().union(*found) - family
        cosines = [mean_cosine(matrices, a, b) for a in family for b in rest]
        return max((c for c in cosines if c == c), default=0.0)

    if len(found[0]) == len(found[1]):
        yield warning(
            f"no majority of the inputs shares a base: cosines between "
            f"{' | '.join(some(sorted(family)) for family in found)} are at most "
            f"{max(map(nearest_cosine, found)):.2f}"
        )
        return
    for family in found[1:]:
        yield warning(
            f"{some(sorted(family))}: of another base than {some(sorted(found[0]))}: cosine of the "
            f"weights {nearest_cosine(family):.2f} (fine-tunes of one base: near 1), or spoiled"
        )


def _outliers(
    tensors: Sequence[TensorDistances], matrices: Sequence[TensorDistances], models: Sequence[str]
) -> Iterator[Remark]:
    """Models and tensors that lie elsewhere than the others, among fine-tunes of one base."""
    far = set()
    spreads = {model: distance for model in models if (distance := _usual(matrices, model))}
    for model, distance in spreads.items():
        others = [value for name, value in spreads.items() if name != model]
        if len(others) > 1 and distance > max(FAR * median(others), NOTABLE):
            far.add(model)
            yield warning(
                f"{model}: {distance / median(others):.0f} times as far from the center as the "
                f"others ({distance:.1%} of the weights' size): another base, or noise?"
            )
    usual = {
        (model, kind): _usual(group, model)
        for kind, group in grouped(tensors, lambda tensor: tensor.place.kind).items()
        for model in models
    }
    strange: dict[str, list[str]] = defaultdict(list)
    for tensor in tensors:
        for model in tensor.distances:
            if model not in far and _is_strange(tensor, model, usual[model, tensor.place.kind]):
                cosine = max(
                    tensor.cosine(model, other) for other in tensor.distances if other != model
                )
                strange[model].append(f"{tensor.name} (cosine {cosine:.3f})")
    if len(models) == 2 and strange:
        one, other = models
        yield warning(f"{one} and {other} differ as strangers do in {some(strange[one])}")
        return
    for model, names in strange.items():
        yield warning(
            f"{model}: unlike the other inputs in {some(names)}, where the rest of it is like "
            "them: swapped, spoiled or retrained?"
        )


def _is_strange(tensor: TensorDistances, model: str, usual: float) -> bool:
    """Whether a model's tensor is a stranger to all others', or much farther than they are."""
    others = [name for name in tensor.distances if name != model]
    agree = [tensor.cosine(a, b) for k, a in enumerate(others) for b in others[k + 1 :]]
    if all(tensor.cosine(model, other) < RELATED for other in others):
        return not agree or max(agree) >= RELATED
    farthest = max(tensor.distances[other] for other in others)
    return len(others) > 1 and tensor.distances[model] > max(FAR * farthest, FAR * usual, NOTABLE)


def _usual(tensors: Sequence[TensorDistances], model: str) -> float:
    """A model's distance from the center in the median over tensors; 0 if it is in none."""
    found = [tensor.distances[model] for tensor in tensors if model in tensor.distances]
    return median(found) if found else 0.0


def _sizes(matrices: Sequence[TensorDistances], models: Sequence[str]) -> Iterator[Remark]:
    for model in models if len(models) > 2 else ():
        ratio = relative_size(matrices, model)
        if not SIZES[0] <= ratio <= SIZES[1]:
            yield warning(
                f"{model}: its weights are {ratio:.3g} times as large as the others'; with "
                "rescale: median they do not set the scale of the merge"
            )


def _rejected(looks: Sequence[Look]) -> Iterator[Remark]:
    weights: dict[str, list[float]] = defaultdict(list)
    rejected: dict[str, list[str]] = defaultdict(list)
    for look in looks:
        if look.line is not None and look.line.weights:
            for k, model in enumerate(look.line.inputs or []):
                column = [row[k] or 0.0 for row in look.line.weights]
                weights[model].append(sum(column) / len(column))
            for finding in look.line.warnings:
                if finding.kind == "rejected" and finding.model:
                    rejected[finding.model].append(look.name)
    for model, names in rejected.items():
        mean = sum(weights[model]) / len(weights[model])
        text = (
            f"{model}: yoyo_fusion rejects it in {len(names):,} of {len(weights[model]):,} tensors"
        )
        if mean < IGNORED:
            yield warning(f"{text}: the merge hardly follows it")
        else:
            yield note(f"{text}{f' ({some(names)})' if len(names) <= 3 else ''}")
