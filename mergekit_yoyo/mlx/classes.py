"""mlx-lm's classes for a config, and what they read of it: found out by building the model.

mlx-lm says nowhere which keys of a config its models heed: `ModelArgs` declares fields that no
model uses, and words for kinds of layers that no list has. So the model is built without weights
(mlx is lazy: 48 layers of 128 experts take a tenth of a second), run on shapes, and overheard.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.utils import MODEL_REMAPPING, _get_classes  # what load_model itself uses

from mergekit_yoyo.errors import YoyoError, nearest

Build = Callable[[Mapping[str, Any]], Any]


def model_classes(config: Mapping[str, Any]) -> tuple[type, type]:
    """mlx-lm's `Model` and `ModelArgs` for a config.

    Raises:
        YoyoError: mlx-lm has none for its `model_type`; the nearest types are listed.
    """
    kind = config.get("model_type")
    if not kind:
        raise YoyoError("config.json: expected a `model_type`; got none. Is this a model folder?")
    if config.get("model_file"):
        raise YoyoError("config.json: `model_file` asks for code of its own; that is not exported.")
    try:
        model_class, args_class = _get_classes(config=dict(config))
    except SystemExit as error:  # mlx-lm's olmo leaves the process if a package is missing
        raise YoyoError(
            f"config.json: mlx-lm's {kind} model cannot be imported ({error})."
        ) from None
    except (ValueError, AttributeError):
        problem = f"config.json: mlx-lm {version('mlx-lm')} has no model for {kind!r}."
        raise YoyoError(f"{problem} {nearest(kind, _known_types())}".rstrip()) from None
    return model_class, args_class


def fields_of(args_class: type) -> Mapping[str, inspect.Parameter]:
    """The fields that a `ModelArgs` declares."""
    return inspect.signature(args_class).parameters


def name_of(known: type) -> str:
    """The model of a class, by the module that it stands in: "mlx-lm's llama model"."""
    package, _, module = known.__module__.partition(".models.")
    return f"{package.replace('_', '-')}'s {module.partition('.')[0]} model"


@dataclass(frozen=True)
class Heard:
    """What a model read of its config.

    Attributes:
        fields: of its `ModelArgs`; None if the model could not be built, so that any may be read.
        words: with which it compared kinds of layers.
    """

    fields: frozenset[str] | None
    words: frozenset[str]

    def reads(self, field: str) -> bool:
        """Whether the model uses a field, as far as it could be found out."""
        return self.fields is None or field in self.fields


def overhear(build: Build, args_class: type, config: Mapping[str, Any]) -> Heard:
    """What a model reads of `config`, for a `ModelArgs` of it or of a part of it.

    Args:
        build: makes the model of the config.
        args_class: whose fields are heard.
        config: fields of `args_class`; `layer_types` may have words that the model does not know.
    """
    words: set[str] = set()
    kinds = config.get("layer_types")
    if isinstance(kinds, Sequence):
        marked = [_Kind(kind) for kind in kinds]
        for kind in marked:
            kind.words = words
        config = {**config, "layer_types": marked}
    with _listening(args_class) as fields:
        try:
            build(config)(mx.zeros((1, 2), mx.int32))
        except Exception:  # of any kind: a model that cannot be built says so when it is
            return Heard(None, frozenset(words))
    return Heard(frozenset(fields), frozenset(words))


def part_class(build: Build, raw: Mapping[str, Any], name: str) -> type | None:
    """The `ModelArgs` that a model makes of one part of its config; None if nobody asks for it."""
    part = dict(raw.get(name) or {})
    original = BaseModelArgs.__dict__["from_dict"]

    def listen(cls: type, params: Any) -> Any:
        if params is part:
            raise _HeardError(cls)
        return original.__func__(cls, params)

    BaseModelArgs.from_dict = classmethod(listen)
    try:
        build({**raw, name: part})
    except _HeardError as heard:
        found: type = heard.args[0]
        return found
    except Exception:  # as in `overhear`
        return None
    finally:
        BaseModelArgs.from_dict = original
    return None


class _HeardError(Exception):
    """Some class of mlx-lm was given the marked part of a config."""


class _Kind(str):
    """A kind of layer that writes down what it is compared with."""

    words: set[str]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            self.words.add(str(other))
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@contextmanager
def _listening(args_class: type) -> Iterator[set[str]]:
    """The fields of `args_class` that anyone reads meanwhile."""
    fields = set[str]()
    original: Any = args_class.__getattribute__

    def listen(self: Any, name: str) -> Any:
        fields.add(name)
        return original(self, name)

    args_class.__getattribute__ = listen  # type: ignore[assignment,method-assign]
    try:
        yield fields
    finally:
        del args_class.__getattribute__


def _known_types() -> list[str]:
    models = importlib.import_module("mlx_lm.models")
    return sorted({m.name for m in pkgutil.iter_modules(models.__path__)} | set(MODEL_REMAPPING))
