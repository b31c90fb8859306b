"""YOYO-Fusion for mergekit: robust merging of fine-tunes, from the YAML to the published model.

Importing this package is cheap (no torch, no mergekit): it installs the hook that makes mergekit
know the method, and names of the algorithm are loaded at first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_yoyo.algorithm import FusionResult as FusionResult
    from mergekit_yoyo.algorithm import fuse as fuse

__version__ = "0.1.0"

__all__ = ["FusionResult", "fuse"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from mergekit_yoyo import algorithm

        return getattr(algorithm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
