"""The merge method `yoyo_fusion` for mergekit 0.1.x. It knows mergekit, and no mathematics."""

# first and whole: the start-up hook registers the method while this import ends
import mergekit.merge_methods  # noqa: F401

from mergekit_yoyo.method.yoyo_fusion import METHOD, YoyoFusion, register

__all__ = ["METHOD", "YoyoFusion", "register"]
