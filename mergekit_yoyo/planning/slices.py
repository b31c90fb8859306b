"""The inputs and layers of a plan whose YAML mergekit has brought into its one form, slices."""

from typing import Any

from mergekit.common import ModelReference

from mergekit_yoyo.planning.law import Layers, stems_of
from mergekit_yoyo.planning.reading import Reader, reader_of


def readers_of(planner: Any) -> list[Reader]:
    """The readers of all models of a plan that mergekit has normalized."""
    models = [
        source.model
        for definition in planner.config.modules.values()
        for part in definition.slices
        for source in part.sources
    ]
    return [reader_of(model) for model in dict.fromkeys(models)]


def layers_of(planner: Any) -> list[Layers]:
    """The layers that go into a plan that mergekit has normalized, by module."""
    found = []
    for name, definition in planner.config.modules.items():
        taken: dict[ModelReference, set[int]] = {}
        counts = {}
        for part in definition.slices:
            for source in part.sources:
                taken.setdefault(source.model, set()).update(range(*source.layer_range))
                module = planner._model_arch(source.model).get_module(name)
                counts[source.model] = module.num_layers()
        out = sum(
            last - first for first, last in (p.sources[0].layer_range for p in definition.slices)
        )
        first = planner._out_module_arch(name).layer_weights(index=0)
        found.append(
            Layers(
                name,
                stems_of(first),
                {model: frozenset(indices) for model, indices in taken.items()},
                counts,
                out,
            )
        )
    return found
