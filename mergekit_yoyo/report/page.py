"""The pages: one file of HTML each, its data, style and script inside, drawn in the browser."""

from typing import Any

import jinja2
import numpy as np

from mergekit_yoyo.record.findings import IGNORED
from mergekit_yoyo.record.quantities import DISTANCE, fixed, number, percent
from mergekit_yoyo.report.compare import MOVING, RecordComparison
from mergekit_yoyo.report.page_data import comparison_data, summary_data
from mergekit_yoyo.report.summary import FOLLOWED, Summary, ranges
from mergekit_yoyo.report.verdict import comparison_verdict, verdict

_CONTESTED = 6  # tensors in the summary's list
_CHANGED = 20  # tensors in the comparison's


def render_page(summary: Summary, *, stretch: bool = False) -> str:
    """The report of one merge as a page that needs no network and opens from disk.

    stretch: begin with colors that span the numbers there are, which the legends say.
    """
    return _render(
        "merge.html",
        summary=summary,
        verdict=verdict(summary),
        header=summary.record.header,
        layers=summary.weights.layers,
        contested=summary.contested[:_CONTESTED],
        followed=FOLLOWED,
        ignored=IGNORED,
        data=summary_data(summary, stretch=stretch),
    )


def render_comparison_page(comparison: RecordComparison) -> str:
    """Two merges of the same inputs on one page: YAML, options, and maps of what moved."""
    return _render(
        "comparison.html",
        comparison=comparison,
        verdict=comparison_verdict(comparison),
        changed=comparison.largest[:_CHANGED],
        distance=DISTANCE,
        names=MOVING,
        data=comparison_data(comparison),
    )


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mergekit_yoyo.report", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "ranges": ranges,
        "fixed": fixed,
        "number": number,
        "percent": percent,
        "signed": lambda value: "-" if np.isnan(value) else f"{round(value, 3) + 0.0:+.3f}",
        "points": lambda value: "-" if np.isnan(value) else f"{round(100 * value, 2) + 0.0:+.2f}",
    }
    environment.tests["known"] = lambda value: not np.isnan(value)
    # `tojson` writes <, > and & as escapes: no name can end the script element
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "separators": (",", ":"),
        "allow_nan": False,
    }
    return environment.get_template(template).render(values)
