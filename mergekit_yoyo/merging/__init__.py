"""A merge by mergekit in durable parts, on all cores or on a cluster: `merge`.

mergekit plans the merge and computes every tensor. What is ours is the order: its tasks are cut
into parts, a part is one file of the model, and a journal remembers which of them are done.
"""

from mergekit_yoyo.merging.run import Merged, merge
from mergekit_yoyo.merging.workers import Workers

__all__ = ["Merged", "Workers", "merge"]
