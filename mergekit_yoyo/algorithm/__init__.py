"""The mathematics of YOYO-Fusion on torch tensors. Nothing here knows mergekit.

Read in the order of the method: `fusion` tells the steps; `span` and `streaming` reduce tensors of
any size to small inner-product matrices and write the result back; `center`, `robust` and `tukey`
work on those matrices, and `recall` in the `spaces` of a layer's inputs.
"""

from mergekit_yoyo.algorithm.fusion import fuse
from mergekit_yoyo.algorithm.result import FusionResult

__all__ = ["FusionResult", "fuse"]
