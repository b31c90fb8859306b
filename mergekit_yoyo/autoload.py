"""The start-up hook: mergekit's method table gains `yoyo_fusion` the moment it is loaded.

Its planner, likewise, is wrapped so that merges by `yoyo_fusion` lose nothing (`planning`).

mergekit has no entry points. A `.pth` file beside the package runs `install()` at every start of
Python in that environment, so this module imports nothing but `sys`, and nothing in it may break
its host: whatever fails becomes a warning.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` would cost more than all of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

METHODS, PLANNER = "mergekit.merge_methods", "mergekit.plan"


class _Finder:
    """A meta path finder that finds nothing itself; it wraps the loaders of two of mergekit's."""

    searching = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in (METHODS, PLANNER) or self.searching:
            return None
        self.searching = True
        try:
            for finder in sys.meta_path:
                find_spec = getattr(finder, "find_spec", None)  # the oldest finders have none
                if find_spec is None or finder is self:
                    continue
                spec: ModuleSpec | None = find_spec(name, path, target)
                if spec is not None:
                    _after(spec.loader, _register if name == METHODS else _repair)
                    return spec
        finally:
            self.searching = False
        return None


def _after(loader: Any, then: Callable[[], None]) -> None:
    try:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            then()

        loader.exec_module = exec_module
    except Exception as error:
        _warn(error)


def _register() -> None:
    try:
        from mergekit_yoyo.method.yoyo_fusion import register

        register()
    except Exception as error:
        _warn(error)


def _repair() -> None:
    try:
        from mergekit_yoyo.method.yoyo_fusion import repair_plans

        repair_plans()
    except Exception as error:
        _warn(error)


def _warn(error: Exception) -> None:
    import warnings

    warnings.warn(
        f"mergekit does not know yoyo_fusion: {error!r}. Run `mergekit-yoyo doctor`.",
        stacklevel=2,
    )


def install() -> None:
    """Hook into the import of mergekit's methods and planner, or act at once if they are loaded."""
    if METHODS in sys.modules:
        _register()
        _repair()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
