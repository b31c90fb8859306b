"""mlx-vlm's models in the shape of mlx-lm's, so that plan, export and comparison need one road.

mlx-vlm makes a model of several configs, cleans the weights by several classes and answers with
more than logits; its loader has that in one function with the reading of the files.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.utils import sanitize_weights, update_module_configs
from numpy.typing import NDArray

# the parts of a config, as mlx-vlm's loader lists them, and the classes that clean their weights
PARTS = ("text", "vision", "perceiver", "projector", "audio")
_CLEANERS = {"VisionModel": "vision", "LanguageModel": "text", "AudioModel": "audio"}

Inputs = Mapping[str, NDArray[Any]]


def seeing_classes(package: ModuleType) -> tuple[type, type]:
    """A model and what makes its arguments of a config, as mlx-lm's loader takes them.

    package: mlx-vlm's of one model type.
    """

    class Arguments:
        """Makes mlx-vlm's `ModelConfig`, parts included."""

        @staticmethod
        def from_dict(config: Mapping[str, Any]) -> Any:
            config = {f"{part}_config": {} for part in ("text", "vision", "audio")} | dict(config)
            made = package.ModelConfig.from_dict(config)
            return update_module_configs(made, package, config, list(PARTS))

    class Seeing(package.Model):  # type: ignore[name-defined,misc]
        """A model that takes token ids and gives logits."""

        def __init__(self, arguments: Any) -> None:
            super().__init__(arguments)
            self._arguments = arguments

        def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
            return logits_of(self, {"input_ids": inputs}, cache)

        def see(self, inputs: Inputs) -> NDArray[np.float32]:
            return _seen(self, inputs)

        def make_cache(self) -> Any:
            return make_prompt_cache(self.language_model)

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            weights = getattr(super(), "sanitize", dict)(weights)
            for name, part in _CLEANERS.items():
                config = getattr(self._arguments, f"{part}_config", None)
                if hasattr(package, name) and config is not None:
                    weights = sanitize_weights(getattr(package, name), weights, config)
            return weights

    Arguments.__module__ = Seeing.__module__ = package.Model.__module__
    return Seeing, Arguments


def logits_of(model: Any, inputs: Mapping[str, mx.array], cache: Any = None) -> mx.array:
    """The logits of a model of mlx-vlm, the way its generation takes.

    Args:
        model: mlx-vlm's.
        inputs: `input_ids` of (1, tokens), and what its processor made of a picture.
        cache: of the language model; a new one by default.
    """
    rest = dict(inputs)
    ids, pixels = rest.pop("input_ids"), rest.pop("pixel_values", None)
    mask = rest.pop("attention_mask", mx.ones(ids.shape, mx.int32))
    embedded = model.get_input_embeddings(ids, pixels, mask=mask, **rest)
    told = {key: value for key, value in embedded.to_dict().items() if value is not None}
    cache = make_prompt_cache(model.language_model) if cache is None else cache
    logits: mx.array = model.language_model(ids, cache=cache, **{**rest, **told}).logits
    return logits


class Written:
    """An export as mlx-vlm loads it, which takes token ids and gives logits."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.set_dtype = model.set_dtype

    def __call__(self, inputs: mx.array) -> mx.array:
        return logits_of(self.model, {"input_ids": inputs})

    def see(self, inputs: Inputs) -> NDArray[np.float32]:
        return _seen(self.model, inputs)


def load_written(folder: Path) -> Written:
    """The model in `folder`, loaded by mlx-vlm."""
    from mlx_vlm.utils import load_model

    return Written(load_model(folder))


def _seen(model: Any, inputs: Inputs) -> NDArray[np.float32]:
    """The logits of every position of a prompt with a picture: (tokens, vocabulary)."""
    arrays = {name: mx.array(array) for name, array in inputs.items()}
    return np.array(logits_of(model, arrays)[0].astype(mx.float32))
