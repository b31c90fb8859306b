"""What the script of a page draws, as JSON: numbers of few significant digits, null for none."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mergekit_yoyo.record.grid import Grid
from mergekit_yoyo.record.quantities import DISTANCE, WEIGHT
from mergekit_yoyo.record.statistics import Array, TensorStatistics, mean
from mergekit_yoyo.rejection import REJECTED
from mergekit_yoyo.report.colors import DISTANCES
from mergekit_yoyo.report.compare import RecordComparison
from mergekit_yoyo.report.maps import Map, comparison_maps, summary_maps
from mergekit_yoyo.report.scales import OF_DISTANCES, Scale, stretched
from mergekit_yoyo.report.summary import Summary

_STRIP = 1000  # weights of single experts are whole thousandths


def summary_data(summary: Summary, *, stretch: bool) -> dict[str, Any]:
    """Of one merge. Tensors are lists in the order of `fields`, which saves most of the bytes;
    `strip` holds the weights of packed experts in thousandths, expert by expert."""
    kinds = list(dict.fromkeys(tensor.place.kind for tensor in summary.tensors))
    rows = [_tensor(tensor, kinds, summary) for tensor in summary.tensors]
    centers = np.array([model.totals.get(DISTANCE, np.nan) for model in summary.models])
    between = summary.gaps[~np.eye(len(summary.models), dtype=bool)]
    known = np.append(between, centers)
    span = stretched(known[~np.isnan(known)])
    return {
        "models": [{"name": model.name, "short": model.short} for model in summary.models],
        "stretch": stretch,
        "least": REJECTED,
        "maps": [_map(each) for each in summary_maps(summary)],
        "gaps": _numbers(summary.gaps, 6),
        "centers": _numbers(centers, 6),
        "gapScale": {
            "key": "gaps",
            "palette": DISTANCES._asdict(),
            "scales": [_scale(each, _share) for each in (OF_DISTANCES, span) if each],
            "ends": ["same", "unrelated"],
        },
        "quantities": [
            {"title": quantity.title, "percent": quantity == DISTANCE}
            for quantity in summary.quantities
        ],
        "kinds": kinds,
        "fields": list(rows[0]) if rows else [],
        "tensors": [list(row.values()) for row in rows],
    }


def comparison_data(comparison: RecordComparison) -> dict[str, Any]:
    """Of two merges: the maps of what moved."""
    return {
        "models": [{"name": model.name, "short": model.short} for model in comparison.models],
        "stretch": False,
        "least": REJECTED,
        "maps": [_map(each) for each in comparison_maps(comparison.moves)],
    }


def _map(shown: Map) -> dict[str, Any]:
    return {
        "key": shown.key,
        "title": shown.quantity.title,
        "note": shown.note,
        "percent": shown.percent,
        "signed": shown.signed,
        "ends": shown.ends,
        "palette": shown.palette._asdict(),
        "scales": [_scale(scale, shown.label) for scale in shown.scales],
        "kinds": shown.grid.kinds,
        "layers": shown.grid.layers,
        "before": shown.grid.before,
        "outside": shown.grid.outside,
        **_values(shown.grid),
        "sides": [_values(side) for side in shown.sides or ()],
    }


def _values(grid: Grid) -> dict[str, Any]:
    return {"values": _numbers(grid.values), "outsideValues": _numbers(grid.outside_values)}


def _scale(scale: Scale, label: Any) -> dict[str, Any]:
    return {
        "low": scale.low,
        "high": scale.high,
        "root": scale.root,
        "stretched": scale.stretched,
        "ticks": [[tick, label(tick)] for tick in scale.ticks],
    }


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _tensor(tensor: TensorStatistics, kinds: Sequence[str], summary: Summary) -> dict[str, Any]:
    line = tensor.line
    merged, packed = tensor.problems > 0, tensor.problems > 1
    strip: list[int | None] = []
    if packed:
        strip = [
            None if np.isnan(weight) else round(weight * _STRIP)
            for weight in tensor.weights.ravel().tolist()
        ]
    return {
        "name": line.name,
        "layer": tensor.place.layer,
        "kind": kinds.index(tensor.place.kind),
        "shape": line.shape,
        "dtype": line.dtype,
        "problems": tensor.problems,
        "weight": _numbers(WEIGHT.of_tensor(tensor)),
        "low": _numbers(np.fmin.reduce(tensor.weights)) if packed else None,
        "high": _numbers(np.fmax.reduce(tensor.weights)) if packed else None,
        "rejected": tensor.rejected.tolist(),
        "quantities": [_numbers(q.of_tensor(tensor)) for q in summary.quantities],
        "disagreement": _number(tensor.disagreement) if merged else None,
        "norm": _numbers(np.sqrt(tensor.problems * mean(tensor.columns["norms"] ** 2))),
        "center": _numbers(mean(tensor.columns["center_weights"])),
        "rank": _span(line.rank),
        "energy": _span(line.energy),
        "scale": _span(line.energy_scale),
        "strength": _span(line.strength),
        "condition": _span(line.condition_number),
        "rounding": _span(line.rounding),
        "iterations": _span(line.iterations),
        "passed": None if merged else line.inputs,
        "options": line.parameters or None,
        "found": [finding.kind for finding in line.warnings if finding.kind != "rejected"],
        "strip": strip,
    }


def _span(values: Iterable[float | None] | None) -> list[float | None] | None:
    """The smallest and the largest of some numbers."""
    known = [value for value in values or () if value is not None]
    return [_number(min(known)), _number(max(known))] if known else None


def _numbers(values: Array, digits: int = 4) -> Any:
    """Nested lists, as an array has them."""
    if values.ndim == 0:
        return _number(float(values), digits)
    return [_numbers(np.asarray(part), digits) for part in values]


def _number(value: float, digits: int = 4) -> float | None:
    return None if not np.isfinite(value) else float(f"{value:.{digits}g}")
