"""Pictures of a merge's record: a summary, a page, a heat map, and the comparison of two."""

from mergekit_yoyo.report.compare import RecordComparison, compare_records
from mergekit_yoyo.report.page import render_comparison_page, render_page
from mergekit_yoyo.report.picture import render_comparison_picture, render_picture
from mergekit_yoyo.report.summary import Summary, summarize
from mergekit_yoyo.report.terminal import render_summary
from mergekit_yoyo.report.terminal_comparison import render_comparison

__all__ = [
    "RecordComparison",
    "Summary",
    "compare_records",
    "render_comparison",
    "render_comparison_page",
    "render_comparison_picture",
    "render_page",
    "render_picture",
    "render_summary",
    "summarize",
]
