"""Merges that are weighted sums of others: the model in memory whose weights follow a setting."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergekit_yoyo.model.checkpoint import Checkpoint
from mergekit_yoyo.model.sources import Sources
from mergekit_yoyo.tuning.knobs import LINEAR_WEIGHTS, Setting, anchors_of, knob_of
from mergekit_yoyo.tuning.recipe import Recipe

Blend = list[tuple[float, Setting]]


def key_of(setting: Setting) -> str:
    """A setting as a text that is the same for the same setting."""
    return json.dumps(setting, sort_keys=True)


def blend_of(recipe: Recipe, setting: Setting) -> Blend:
    """The merges that a merge with this setting is a weighted sum of, each with its factor.

    A merge that is linear in none of the options that it moves is itself.
    """
    weights = {key: value for key, value in setting.items() if key.startswith("weight[")}
    if weights and _linear_in_weights(recipe):
        return _blend_of_weights(recipe, setting)
    choices: list[list[tuple[str, float, float]]] = []
    for key, value in setting.items():
        anchors = anchors_of(recipe.method, key)
        if anchors is None or isinstance(value, str | list) or value is None:
            continue
        if not knob_of(key).acts({**recipe.deciding, **setting}):
            continue
        low, high = anchors
        share = (float(value) - low) / (high - low)
        choices.append([(key, low, 1.0 - share), (key, high, share)])
    blend: Blend = []
    for corner in product(*choices):
        factor = 1.0
        part = dict(setting)
        for key, value, share in corner:
            part[key] = value
            factor *= share
        if factor:
            blend.append((factor, part))
    return blend


def _linear_in_weights(recipe: Recipe) -> bool:
    if recipe.method not in LINEAR_WEIGHTS:
        return False
    return recipe.method == "linear" or not recipe.value("normalize")


def _blend_of_weights(recipe: Recipe, setting: Setting) -> Blend:
    """linear: sum w_k x_k, over sum w_k if normalized. task_arithmetic: base + lambda sum w_k d_k.

    The parts are the models alone, for task_arithmetic also the base.
    """
    keys = [f"weight[{k}]" for k in range(len(recipe.models))]
    if recipe.method == "task_arithmetic":
        keys = [key for key in keys if key in setting]
    weights = [float(setting.get(key, recipe.value(key))) for key in keys]
    alone: list[Setting] = []
    for key in keys:
        alone.append({**setting, **{k: float(k == key) for k in keys}})
        if "lambda" in setting:
            alone[-1]["lambda"] = 1.0
    if recipe.method == "linear":
        total = sum(weights) if recipe.value("normalize") is not False else 1.0
        if total <= 0:
            return []
        return [(w / total, part) for w, part in zip(weights, alone, strict=True) if w]
    scale = float(setting["lambda"] if "lambda" in setting else recipe.value("lambda"))
    own = 1.0 if "lambda" in setting else scale  # the parts are merged with the YAML's own factor
    factors = [scale * w / own for w in weights]
    base = {**setting, **dict.fromkeys(keys, 0.0)}
    if "lambda" in setting:
        base["lambda"] = 1.0
    return [
        (factor, part)
        for factor, part in [(1.0 - sum(factors), base), *zip(factors, alone, strict=True)]
        if factor
    ]


class Mixture:
    """A model in memory that takes the weights of one merge after the other.

    folder: a merge, whose config it has. device, dtype: of its arithmetic. rounded: the dtype that
    the merges are published in; weights are rounded to it first.
    """

    def __init__(
        self, folder: Path, *, device: str, dtype: torch.dtype, rounded: torch.dtype
    ) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model: Any = model.eval().to(device)
        self._device, self._rounded = device, rounded
        with Checkpoint(folder) as checkpoint:
            self._sources = Sources(folder, checkpoint.tensors)
        self._state: Mapping[str, Tensor] = self.model.state_dict()

    @torch.no_grad()
    def load(self, parts: Sequence[tuple[float, Path]]) -> None:
        """Take the weighted sum of merges on the disk, tensor by tensor."""
        with reading(parts) as read:
            self.take(read(self._device), rounded=self._rounded)

    @torch.no_grad()
    def take(self, read: Callable[[str], Tensor], *, rounded: torch.dtype = torch.float32) -> None:
        """Take the tensors of a checkpoint that `read` gives by name."""
        for target in self._sources.of:
            tensor = self._sources.convert(target, read)
            self._state[target].copy_(tensor.to(rounded))

    @torch.no_grad()
    def dot(self, read: Callable[[str], Tensor], moves: Callable[[str], bool]) -> float:
        """The inner product of the model's gradients with the tensors of a checkpoint.

        moves: whether a tensor of the checkpoint is other than zero.
        """
        gradients = {name: p.grad for name, p in self.model.named_parameters()}
        total = 0.0
        for target, source in self._sources.of.items():
            gradient = gradients.get(target)  # of tied tensors the one name has it
            if gradient is not None and any(map(moves, source.names)):
                tensor = self._sources.convert(target, read).to(gradient.device)
                total += float((gradient.float() * tensor).sum())
        return total

    def forget_gradients(self) -> None:
        """Free what a backward pass left."""
        self.model.zero_grad(set_to_none=True)


@contextmanager
def reading(
    parts: Sequence[tuple[float, Path]],
) -> Iterator[Callable[[str], Callable[[str], Tensor]]]:
    """Gives, for a device, what reads a tensor of the weighted sum by its name, in float32."""
    opened = [(factor, Checkpoint(folder)) for factor, folder in parts]

    def on(device: str) -> Callable[[str], Tensor]:
        def read(name: str) -> Tensor:
            total: Tensor | None = None
            for factor, checkpoint in opened:
                part = checkpoint.read(name).to(device)
                if not part.is_floating_point():
                    return part
                part = part.float()
                # a product is new memory: what is added to must not be the mapped file
                total = part * factor if total is None else total.add_(part, alpha=factor)
            assert total is not None
            return total

        return read

    try:
        yield on
    finally:
        for _, checkpoint in opened:
            checkpoint.__exit__(None, None, None)
