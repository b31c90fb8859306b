"""What a merge did, and what changed between two, in one sentence."""

import math
from collections.abc import Sequence

import numpy as np

from mergekit_yoyo.record.findings import IGNORED
from mergekit_yoyo.record.quantities import DISTANCE, RECALLED, WEIGHT, fixed, percent
from mergekit_yoyo.report.compare import RecordComparison
from mergekit_yoyo.report.summary import FOLLOWED, ModelTotals, Summary


def verdict(summary: Summary) -> str:
    """Whom the merge follows, whom it hardly follows, and whom it leaves out."""
    models = [model for model in summary.models if not math.isnan(model.weight)]
    if not models:
        return "Nothing was merged: every tensor has a single input."
    followed = [model for model in models if model.weight >= FOLLOWED]
    hardly = [model for model in models if IGNORED <= model.weight < FOLLOWED]
    ignored = [model for model in models if model.weight < IGNORED]
    parts = []
    if followed == models:
        parts.append(f"follows {_all(len(models))} (mean weight {_span(followed)})")
    elif followed:
        parts.append(
            f"follows {_listed([m.short for m in followed])} (mean weight {_span(followed)})"
        )
    if hardly:
        parts.append(
            f"hardly follows {_listed([f'{m.short} ({fixed(m.weight)})' for m in hardly])}"
        )
    if ignored:
        parts.append(f"leaves out {_listed([f'{m.short} ({_rejections(m)})' for m in ignored])}")
    elif not any(model.rejected for model in models):
        parts.append("rejects nothing")
    if some := [model for model in (*followed, *hardly) if model.rejected]:
        parts.append(f"rejects {_listed([f'{m.short} in {_places(m)}' for m in some])}")
    return f"The merge {_listed(parts)}."


def comparison_verdict(comparison: RecordComparison) -> str:
    """By how much the weights and distances moved, and where most."""
    options = [f"{o.name} ({o.a} in A, {o.b} in B)" for o in comparison.options[:3]]
    more = len(comparison.options) - len(options)
    differing = _listed([*options, *([f"{more} more options"] if more else [])])
    made = f"A and B differ in {differing}" if options else "A and B have the same options"
    found = []
    if move := comparison.moves.get(WEIGHT):
        model = max(comparison.models, key=lambda m: np.nan_to_num(abs(m.b - m.a)))
        kinds = {kind: float(np.nanmax(np.abs(v))) for kind, v in move.kinds.items()}
        kind = max(kinds, key=lambda kind: kinds[kind])
        found.append(
            f"the weights moved, {model.short}'s most ({fixed(model.a)} to {fixed(model.b)}), "
            f"and most in {kind}"
        )
    else:
        found.append("no weight moved beyond the record's six digits")
    if DISTANCE in comparison.moves:
        model = max(
            comparison.models, key=lambda m: np.nan_to_num(abs(m.distance_b - m.distance_a))
        )
        found.append(
            f"the center moved ({model.short} was {percent(model.distance_a)} from it and is "
            f"{percent(model.distance_b)})"
        )
    if RECALLED in comparison.moves:
        given = [(m.recalled_a, m.recalled_b) for m in comparison.models]
        a, b = (fixed(float(np.nanmean(side))) for side in zip(*given, strict=True))
        found.append(f"recall gives back {b} of what is each model's own instead of {a}")
    lengths = [o.name for o in comparison.options if o.name in ("rescale", "max_scale")]
    if lengths:
        found.append(
            f"{_listed(lengths)} decides how large the merged tensors are, which no record holds"
        )
    if any(o.name == "rounding" for o in comparison.options):
        found.append("rounding decides the last bits of the merged tensors")
    return f"{made}: {'; '.join(found)}."


def _all(count: int) -> str:
    return {1: "its one model", 2: "both models"}.get(count, f"all {count} models")


def _span(models: Sequence[ModelTotals]) -> str:
    low, high = (f"{f(model.weight for model in models):.2f}" for f in (min, max))
    return low if low == high else f"{low} to {high}"


def _rejections(model: ModelTotals) -> str:
    return (
        f"rejected in {_places(model)}" if model.rejected else f"mean weight {fixed(model.weight)}"
    )


def _places(model: ModelTotals) -> str:
    share = model.rejected / model.problems
    count = f"{model.rejected:,} of {model.problems:,} places ({share:.1%})"
    return count if model.rejected < model.problems else f"all {model.problems:,} places"


def _listed(parts: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
