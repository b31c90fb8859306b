"""The page: one file of HTML with its data, style and script inside, drawn in the browser."""

from collections.abc import Iterable
from typing import Any

import jinja2
import numpy as np

from mergekit_yoyo.record.findings import IGNORED
from mergekit_yoyo.record.grid import Grid
from mergekit_yoyo.record.quantities import DISTANCE, WEIGHT, fixed
from mergekit_yoyo.record.statistics import Array, TensorStatistics, mean
from mergekit_yoyo.rejection import REJECTED
from mergekit_yoyo.report.colors import DARK, LIGHT
from mergekit_yoyo.report.summary import FOLLOWED, Summary, ranges

_CONTESTED = 6  # tensors in the summary's list
_STRIP = 1000  # weights of single experts are whole thousandths


def render_page(summary: Summary) -> str:
    """The report of one merge as a page that needs no network and opens from disk."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mergekit_yoyo.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["ranges"] = ranges
    environment.tests["known"] = lambda value: not np.isnan(value)
    environment.filters["fixed"] = fixed
    # `tojson` writes <, > and & as escapes: no name can end the script element
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "separators": (",", ":"),
        "allow_nan": False,
    }
    return environment.get_template("page.html").render(
        summary=summary,
        header=summary.record.header,
        layers=summary.weights.layers,
        contested=summary.contested[:_CONTESTED],
        followed=FOLLOWED,
        ignored=IGNORED,
        data=page_data(summary),
    )


def page_data(summary: Summary) -> dict[str, Any]:
    """What the script draws, as JSON: numbers of four significant digits, null where there is none.

    Tensors are lists in the order of `fields`, which saves most of the bytes; `strip` holds the
    weights of packed experts in thousandths, expert by expert.
    """
    kinds = sorted({tensor.place.kind for tensor in summary.tensors})
    rows = [_tensor(tensor, kinds, summary) for tensor in summary.tensors]
    return {
        "models": [{"name": model.name, "short": model.short} for model in summary.models],
        "quantities": [quantity.title for quantity in summary.quantities],
        "least": REJECTED,
        "scales": {"light": LIGHT, "dark": DARK},
        "kinds": kinds,
        "weights": _grid(summary.weights),
        "distances": _grid(summary.distances),
        "gaps": _numbers(summary.gaps),
        "centers": [_number(model.totals.get(DISTANCE, np.nan)) for model in summary.models],
        "fields": list(rows[0]) if rows else [],
        "tensors": [list(row.values()) for row in rows],
    }


def _tensor(tensor: TensorStatistics, kinds: list[str], summary: Summary) -> dict[str, Any]:
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
        "iterations": _span(line.iterations),
        "passed": None if merged else line.inputs,
        "options": line.parameters or None,
        "found": [finding.kind for finding in line.warnings if finding.kind != "rejected"],
        "strip": strip,
    }


def _grid(grid: Grid) -> dict[str, Any]:
    return {
        "kinds": grid.kinds,
        "layers": grid.layers,
        "values": _numbers(grid.values),
        "outside": grid.outside,
        "outsideValues": _numbers(grid.outside_values),
    }


def _span(values: Iterable[float | None] | None) -> list[float | None] | None:
    """The smallest and the largest of some numbers."""
    known = [value for value in values or () if value is not None]
    return [_number(min(known)), _number(max(known))] if known else None


def _numbers(values: Array) -> Any:
    """Nested lists, as an array has them."""
    if values.ndim == 0:
        return _number(float(values))
    return [_numbers(np.asarray(part)) for part in values]


def _number(value: float) -> float | None:
    return None if not np.isfinite(value) else float(f"{value:.4g}")
