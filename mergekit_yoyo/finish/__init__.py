"""A merge that looks like the models that went in: `plan_finish`, then `finish`."""

from mergekit_yoyo.finish.card import upload_command
from mergekit_yoyo.finish.complete import complete
from mergekit_yoyo.finish.differences import Difference
from mergekit_yoyo.finish.plan import FinishPlan, merge_yaml_of, plan_finish
from mergekit_yoyo.finish.run import finish

__all__ = [
    "Difference",
    "FinishPlan",
    "complete",
    "finish",
    "merge_yaml_of",
    "plan_finish",
    "upload_command",
]
