"""A look at a merge before it is run: `inspect`."""

from mergekit_yoyo.inspection.remark import Level
from mergekit_yoyo.inspection.run import Inspection, Reading, inspect
from mergekit_yoyo.inspection.stages import inspect_stages, is_multi
from mergekit_yoyo.inspection.terminal import show

__all__ = ["Inspection", "Level", "Reading", "inspect", "inspect_stages", "is_multi", "show"]
