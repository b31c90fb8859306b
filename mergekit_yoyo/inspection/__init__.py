"""A look at a merge before it is run: `inspect`."""

from mergekit_yoyo.inspection.run import Inspection, inspect

__all__ = ["Inspection", "inspect"]
