"""A merge by mergekit in durable parts, on all cores or on a cluster: `merge`.

mergekit plans the merge and computes every tensor. What is ours is the order: its tasks are cut
into parts, a part is one file of the model, and a journal remembers which of them are done.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergekit_yoyo.merging.cluster import Cluster
    from mergekit_yoyo.merging.run import Merged, merge
    from mergekit_yoyo.merging.workers import Local

_HOMES = {"Cluster": "cluster", "Local": "workers", "Merged": "run", "merge": "run"}
__all__ = ["Cluster", "Local", "Merged", "merge"]


def __getattr__(name: str) -> Any:
    """Load a public name at first use: workers start while this process still imports."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
