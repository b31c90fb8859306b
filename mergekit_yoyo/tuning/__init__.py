"""The strength of a merge, found without data: `tune`.

Each model writes text; the divergence from a model to the merge on the model's own text says how
much of it the merge keeps. What a merge is linear in is searched over weighted sums of merges that
are made once.
"""

from mergekit_yoyo.tuning.outcome import Outcome
from mergekit_yoyo.tuning.run import Search, Tuned, tune
from mergekit_yoyo.tuning.subjects import Texts

__all__ = ["Outcome", "Search", "Texts", "Tuned", "tune"]
