"""What `inspect` and `report` say alike of a merge's numbers, and from where on they say it."""

from collections.abc import Callable, Sequence

import numpy as np

from mergekit_yoyo.record.quantities import SIZE, percent, rms
from mergekit_yoyo.record.schema import FindingKind
from mergekit_yoyo.record.statistics import Array, TensorStatistics, over_elements

IGNORED = 0.1  # mean weight below which a model is as good as rejected
ODD_SIZE = 2.0  # a model this many times larger or smaller than the others is told


def weighed(tensors: Sequence[TensorStatistics], model: int) -> list[TensorStatistics]:
    """The tensors in which a model is weighed: none for an anchor of recall."""
    return [tensor for tensor in tensors if not np.isnan(tensor.weights[:, model]).all()]


def count_found(tensors: Sequence[TensorStatistics], kind: FindingKind) -> int:
    """In how many tensors the record has a finding of that kind."""
    return sum(any(found.kind == kind for found in tensor.line.warnings) for tensor in tensors)


def odd_sizes(
    tensors: Sequence[TensorStatistics], names: Sequence[str], *, restores_mean: bool
) -> list[str]:
    """A sentence for each model whose weights are of another size than the others'.

    restores_mean: the merge has `rescale: mean`, so that such a model sets its scale; with less
    than three inputs the median is the mean, and no remedy.
    """
    remedy = "; rescale: median keeps that out of the merge"
    return [
        f"The weights of {name} are {size:.3g} times as large as the others'"
        f"{remedy if restores_mean and len(names) > 2 else ''}."
        for name, size in zip(names, SIZE.over(tensors, len(names)).tolist(), strict=True)
        if size < 1 / ODD_SIZE or size > ODD_SIZE
    ]


def recall_said(tensors: Sequence[TensorStatistics]) -> str:
    """Recall's strength and condition numbers over all tensors; empty without recall."""
    lines = [tensor.line for tensor in tensors]
    strengths = [beta for line in lines for beta in line.strength or [] if beta is not None]
    bounds = [c for line in lines for c in line.condition_number or [] if c is not None]
    if not strengths:
        return ""
    low, high = f"{min(strengths):.2f}", f"{max(strengths):.2f}"
    said = f"Recall: strength {low}" + (f" to {high}" if high != low else "")
    return said + (f", condition numbers below {max(bounds):,.0f}" if bounds else "") + "."


def rounding_said(tensors: Sequence[TensorStatistics], rule: str) -> str:
    """What writing the merge in half precision changed, beside what the inputs differ by; empty
    where nothing is known of it.

    rule: how, by the header of the record; a tensor's own parameters come first.
    """
    rounded: dict[str, list[TensorStatistics]] = {}
    for tensor in tensors:
        if not np.isnan(tensor.rounding):
            how = tensor.line.parameters.get("rounding", rule)
            rounded.setdefault(str(how), []).append(tensor)
    return " ".join(_rounded(known, how) for how, known in sorted(rounded.items()))


def _rounded(known: Sequence[TensorStatistics], rule: str) -> str:
    """The same of tensors that were all rounded by one rule."""

    def over(value: Callable[[TensorStatistics], float]) -> str:
        shares: Array = over_elements(known, lambda t: np.array(value(t)), (), rms)
        return percent(float(shares))

    how = "Rounding" if rule == "nearest" else f"Rounding ({rule})"
    dtypes = " and ".join(sorted({tensor.line.dtype for tensor in known}))
    said = (
        f"{how} to {dtypes} moved the merge by {over(lambda t: t.rounding)} (RMS); its inputs lie "
        f"{over(lambda t: t.disagreement)} from their center"
    )
    if rule != "nearest":
        return f"{said}, and it favors no direction."
    more = sum(0 < tensor.disagreement < tensor.rounding for tensor in known)
    return said + (
        f", and less than it moved in {more:,} of {len(known):,} tensors." if more else "."
    )
