"""YOYO-Fusion for mergekit: robust merging of fine-tunes, from the YAML to the published model.

Importing this package is cheap (no torch, no mergekit): it installs the hook that makes mergekit
know the method, and the names below are loaded at first use.
"""

from mergekit_yoyo import autoload

TYPE_CHECKING = False  # `typing` itself would cost every Python start of the environment
if TYPE_CHECKING:
    from mergekit_yoyo.algorithm import FusionResult as FusionResult
    from mergekit_yoyo.algorithm import fuse as fuse
    from mergekit_yoyo.errors import YoyoError as YoyoError
    from mergekit_yoyo.inspection import Inspection as Inspection
    from mergekit_yoyo.inspection import inspect as inspect
    from mergekit_yoyo.inspection import inspect_stages as inspect_stages
    from mergekit_yoyo.record.reading import Record as Record
    from mergekit_yoyo.record.reading import read_record as read_record
    from mergekit_yoyo.report import compare_records as compare_records
    from mergekit_yoyo.report import render_page as render_page
    from mergekit_yoyo.report import render_picture as render_picture
    from mergekit_yoyo.report import summarize as summarize

__version__ = "0.1.0"

# name -> where it is; none of them has the name of a part of the package
_PUBLIC = {
    "FusionResult": "algorithm",
    "fuse": "algorithm",
    "YoyoError": "errors",
    "Inspection": "inspection",
    "inspect": "inspection",
    "inspect_stages": "inspection",
    "Record": "record.reading",
    "read_record": "record.reading",
    "compare_records": "report",
    "render_page": "report",
    "render_picture": "report",
    "summarize": "report",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*sorted(_PUBLIC), "__version__"]


autoload.install()
