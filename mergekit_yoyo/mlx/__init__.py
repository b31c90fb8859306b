"""From a merge to a working MLX model: recipes, plan, config bridge, export, verification.

Needs the extra `mlx` (`pip install ".[mlx]"`). `recipes` alone does not import mlx.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.install import install_line

if TYPE_CHECKING:
    from mergekit_yoyo.mlx.automatic import Auto
    from mergekit_yoyo.mlx.better import Rounding
    from mergekit_yoyo.mlx.export import Export, export_model, plan_export, plan_exports
    from mergekit_yoyo.mlx.plan import ExportPlan
    from mergekit_yoyo.mlx.recipes import Recipe, load_recipe, parse_recipe, recipe_names
    from mergekit_yoyo.mlx.terminal import show_export, show_plan, show_plans

_HOMES = {
    "Auto": "automatic",
    "Export": "export",
    "export_model": "export",
    "plan_export": "export",
    "plan_exports": "export",
    "ExportPlan": "plan",
    "Recipe": "recipes",
    "Rounding": "better",
    "load_recipe": "recipes",
    "parse_recipe": "recipes",
    "recipe_names": "recipes",
    "show_export": "terminal",
    "show_plan": "terminal",
    "show_plans": "terminal",
}
__all__ = [
    "Auto",
    "Export",
    "ExportPlan",
    "Recipe",
    "Rounding",
    "export_model",
    "load_recipe",
    "parse_recipe",
    "plan_export",
    "plan_exports",
    "recipe_names",
    "show_export",
    "show_plan",
    "show_plans",
]


def __getattr__(name: str) -> Any:
    """Load a public name at first use, so that recipes can be read without mlx."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if error.path and Path(error.path).parent.name == "mlx":  # its compiled part
            package = "mlx"
        if package not in ("mlx", "mlx_lm", "psutil"):
            raise
        wrong = f"{package} cannot be imported ({error})"
        if isinstance(error, ModuleNotFoundError):
            wrong = f"{error.name} is not installed"
        raise YoyoError(f"{wrong}: {install_line('mlx')}") from None
