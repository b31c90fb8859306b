"""A merge that looks like the models that went in: `plan_finish`, then `finish`."""

from mergekit_yoyo.finish.card import upload_command
from mergekit_yoyo.finish.differences import Difference
from mergekit_yoyo.finish.run import FinishPlan, finish, plan_finish

__all__ = ["Difference", "FinishPlan", "finish", "plan_finish", "upload_command"]
