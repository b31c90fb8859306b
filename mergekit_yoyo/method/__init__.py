"""The merge method `yoyo_fusion` for mergekit 0.1.x. It knows mergekit, and no mathematics."""

from mergekit_yoyo.method.yoyo_fusion import METHOD, YoyoFusion

__all__ = ["METHOD", "YoyoFusion", "register"]


def register() -> None:
    """Make mergekit know the method. Harmless if it does already."""
    from mergekit.merge_methods import registry

    if METHOD.spec.name not in {method.spec.name for method in registry.registered_methods()}:
        registry.register(METHOD)
