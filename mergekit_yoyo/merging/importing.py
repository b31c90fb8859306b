"""mergekit imported without what it names and a merge seldom needs: a second of its three.

Two of its modules import peft and transformers' modeling code, for LoRA adapters, for models of an
architecture that has to be built to be known, and for the words of an annotation. Stand-ins take
their places while mergekit is imported, and load the real thing at first use.
"""

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_LAZY = ("peft", "transformers.modeling_utils")
# What mergekit takes from them while it is imported: for an annotation, and to call it later.
_ANNOTATED, _CALLED = "PreTrainedModel", "_get_tied_weight_keys"


def import_mergekit() -> None:
    """Import `mergekit.merge`, once, with stand-ins for what a merge seldom needs."""
    if "mergekit.common" in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()  # imports make many objects that all stay: collecting costs a third of their time
    import transformers

    standing = {name: _stand_in(name) for name in _LAZY if name not in sys.modules}
    sys.modules.update(standing)
    try:
        import_module("mergekit.merge")
    finally:
        for name, module in standing.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        for name in (_ANNOTATED, "modeling_utils"):  # transformers keeps what it was asked for
            with suppress(AttributeError):
                delattr(transformers, name)
        gc.freeze()
        if collecting:
            gc.enable()


def _stand_in(name: str) -> ModuleType:
    """A module that loads the real one when something is asked of it, or called."""
    module = ModuleType(name)
    module.__spec__ = find_spec(name)

    def find(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(name) is module:  # mergekit is being imported
            if attribute == _ANNOTATED:
                return type(attribute, (), {})
            if attribute == _CALLED:
                return _later(name, attribute)
            del sys.modules[name]
        return getattr(import_module(name), attribute)

    module.__getattr__ = find  # type: ignore[method-assign]
    return module


def _later(module: str, function: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return getattr(import_module(module), function)(*args, **options)

    return call
