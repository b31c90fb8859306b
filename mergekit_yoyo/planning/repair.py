"""A plan of mergekit made whole: what it leaves out is planned too, by the merge's own method.

mergekit skips a weight that is optional and not stored under its own name, though it could be
converted; it demands weights of its definitions that a model need not have; and it never sees what
transformers' class lacks. `Repair` stands beside a `MergePlanner`: it corrects the first two weight
by weight, and plans the rest at the end. The tasks are all mergekit's own planning.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference
from mergekit.config import ConfigReader, OutputModuleDefinition, OutputSliceDefinition
from mergekit.io.tasks import GatherTensors

from mergekit_yoyo.model.predictions import set_predictions
from mergekit_yoyo.planning.held import form_of
from mergekit_yoyo.planning.law import Account, Layers, Lost, account
from mergekit_yoyo.planning.reading import Reader, gather_converted, reader_of
from mergekit_yoyo.planning.slices import layers_of, readers_of

LOG = logging.getLogger(__name__)

PlanTensor = Callable[[Any, WeightInfo, list[WeightInfo], list[ModelReference], ConfigReader], None]


@dataclass
class Repair:
    """The repair of one plan.

    plan_tensor: mergekit's own. left_out: who holds what base_model lacks. copied: what only some
    inputs hold, by the models that do.
    """

    planner: Any
    plan_tensor: PlanTensor
    left_out: dict[str, list[ModelReference]] = field(default_factory=dict)
    copied: dict[tuple[ModelReference, ...], list[str]] = field(default_factory=dict)

    def plan_weight(
        self,
        weight: WeightInfo,
        weights_in: list[WeightInfo],
        models: list[ModelReference],
        cfg_reader: ConfigReader,
    ) -> None:
        """Plan a weight of mergekit's architecture, if the inputs have it in whatever spelling."""
        readers = [reader_of(model) for model in models]
        pairs = list(zip(readers, weights_in, strict=False))  # mergekit pairs them so itself
        have = [bool(r.read_from(w)) for r, w in pairs]
        damaged = any(r.lacks(w.name) for (r, w), h in zip(pairs, have, strict=True) if not h)
        holders = tuple(r.model for (r, _), h in zip(pairs, have, strict=True) if h)
        stored = any(_stored(r, w) for r, w in pairs)
        if not stored and any(r.converted(w) for r, w in pairs):
            if all(have) and _merged_apart(pairs):
                return  # the parts are merged as they are stored, with the rest
            if not all(have):
                self.copied.setdefault(holders, []).append(weight.name)
            self._append(
                *_optional(not all(have) and not damaged, weight, weights_in),
                models,
                cfg_reader,
                forced=True,
            )
        elif weight.optional or all(have) or damaged:
            self._append(weight, weights_in, models, cfg_reader)
        elif any(have):
            self.copied.setdefault(holders, []).append(weight.name)
            self._append(*_optional(True, weight, weights_in), models, cfg_reader)
        else:
            LOG.info("%s: no input has it and their class needs none", weight.name)

    def plan_rest(self) -> Account:
        """Plan what no weight of the architecture is; gives what is lost even so.

        Raises:
            YoyoError: inputs hold a tensor of one name in different shapes.
        """
        layers = layers_of(self.planner)
        readers = readers_of(self.planner)
        found = account(self._tasks(), layers, readers)
        if not found.lost:
            return found
        self._plan_layers([lost for lost in found.lost if lost.place and not lost.trails])
        self._plan_loose([lost for lost in found.lost if not lost.place or lost.trails], layers)
        for note in self.notes:
            LOG.warning(note)
        result = account(self._tasks(), layers, readers)
        result.lost = [lost for lost in result.lost if lost.name not in self.left_out]
        return result

    def tell_config(self) -> None:
        """Make the config that mergekit will save agree with the tensors that are planned."""
        names = [weight.name for weight, _ in self.planner._tensors]
        set_predictions(self.planner.out_model_config, names)

    def _reader(self, part: OutputSliceDefinition, module: OutputModuleDefinition) -> ConfigReader:
        config = self.planner.config
        return ConfigReader(config=config, slice_out=part, t=0, module=module)

    def _tasks(self) -> list[Any]:
        return [task for _, task in self.planner._tensors]

    def _plan_layers(self, lost: Sequence[Lost]) -> None:
        """Tensors within layers: in every layer of the merge that their layer goes into."""
        in_layer: dict[tuple[str, ModelReference, int], list[Lost]] = {}
        for item in lost:
            assert item.place is not None
            key = item.place.layers.module, item.model, item.place.index
            in_layer.setdefault(key, []).append(item)
        for module, definition in self.planner.config.modules.items():
            offset = 0
            for part in definition.slices:
                first, last = part.sources[0].layer_range
                reader = self._reader(part, definition)
                for index in range(last - first):
                    templates: dict[str, dict[ModelReference, str]] = {}
                    for source in part.sources:
                        at = source.layer_range[0] + index
                        for item in in_layer.get((module, source.model, at), ()):
                            assert item.place is not None
                            name = item.place.at(offset + index)
                            templates.setdefault(name, {})[source.model] = item.name
                    models = [source.model for source in part.sources]
                    t = index / (last - first - 1) if last - first > 1 else 1  # as mergekit has it
                    for name, held in templates.items():
                        self._plan_held(name, held, models, reader.with_t(t))
                offset += last - first

    def _plan_loose(self, lost: Sequence[Lost], layers: Sequence[Layers]) -> None:
        """Tensors outside of layers, by the first slice; layers behind the last, by the last."""
        main = max(layers, key=lambda module: (module.out, module.module))
        templates: dict[tuple[str, bool], dict[ModelReference, str]] = {}
        modules: dict[str, Layers] = {}
        for item in lost:
            name = item.name
            if item.place is not None:
                module = item.place.layers
                name = item.place.at(item.place.index - module.counts[item.model] + module.out)
                modules[name] = module
            templates.setdefault((name, item.trails), {})[item.model] = item.name
        for (name, trails), held in templates.items():
            definition = self.planner.config.modules[modules.get(name, main).module]
            part = definition.slices[-1 if trails else 0]
            reader = self._reader(part, definition).with_t(int(trails))
            models = [source.model for source in part.sources]
            chosen = {model: held[model] for model in models if model in held}
            if chosen:
                self._plan_held(name, chosen, models, reader)
            else:  # only models have it that go into other slices
                self._plan_held(name, held, list(held), reader)

    def _plan_held(
        self,
        name: str,
        held: Mapping[ModelReference, str],
        models: Sequence[ModelReference],
        reader: ConfigReader,
    ) -> None:
        """Plan a tensor that some models hold, each under a name of its own."""
        lacking = [model for model in models if model not in held]
        if reader.base_model in lacking:
            for stored in held.values():
                self.left_out[stored] = list(held)
            return
        if lacking:
            self.copied.setdefault(tuple(held), []).append(name)
        options = {"optional": bool(lacking), **form_of(name, held)}
        self._append(
            WeightInfo(name=name, **options),
            [WeightInfo(name=held.get(model, name), **options) for model in models],
            list(models),
            reader,
        )

    def _append(
        self,
        weight: WeightInfo,
        weights_in: list[WeightInfo],
        models: list[ModelReference],
        reader: ConfigReader,
        forced: bool = False,
    ) -> None:
        """Have mergekit plan a weight, and let its inputs be converted by our lookup.

        forced: even if it is optional and stored nowhere under its own name.
        """
        planned = self.planner._tensors
        before = len(planned)
        asked = weight.model_copy(update={"optional": False}) if forced else weight
        self.plan_tensor(self.planner, asked, weights_in, models, reader)
        if len(planned) == before:
            return
        _, task = planned[-1]
        outer, inner = task.gather_tensors, getattr(task.gather_tensors, "gather_tensors", None)
        gather = outer if inner is None else inner
        if isinstance(gather, GatherTensors):
            found = gather_converted(gather)
            if found is not gather:
                if inner is not None:
                    found = outer.model_copy(update={"gather_tensors": found})
                task = task.model_copy(update={"gather_tensors": found})
        if forced:
            task = task.model_copy(update={"output_weight": weight})
        planned[-1] = (weight, task)

    @property
    def notes(self) -> list[str]:
        """What a person should know of tensors that some inputs lack."""
        notes = [
            f"{_some(names)}: only in {', '.join(map(str, models))}: "
            + ("copied" if len(models) == 1 else "merged from them alone")
            for models, names in self.copied.items()
        ]
        if self.left_out:
            names = list(self.left_out)
            notes.append(f"{_some(names)}: left out, since base_model has none")
        return notes


def _optional(
    optional: bool, weight: WeightInfo, weights_in: Sequence[WeightInfo]
) -> tuple[WeightInfo, list[WeightInfo]]:
    """A weight, and what it is of each input, made optional or not."""
    change = {"optional": optional}
    return weight.model_copy(update=change), [w.model_copy(update=change) for w in weights_in]


def _stored(reader: Reader, weight: WeightInfo) -> bool:
    """Whether mergekit finds an optional weight: by name or alias, as it is."""
    return any(name in reader.names for name in (weight.name, *(weight.aliases or ())))


def _merged_apart(pairs: Sequence[tuple[Reader, WeightInfo]]) -> bool:
    """Whether a weight joins tensors that every input stores apart, under the same names.

    A method merges what a checkpoint stores: three convolutions, not the one that the class runs.
    """
    names = {reader.read_from(weight) for reader, weight in pairs}
    if len({len(found) for found in names}) > 1:
        return False
    for reader, weight in pairs:
        target = reader.converted(weight)
        if reader.sources is None or target is None or not reader.sources.of[target].joins:
            return False
    return True


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"{names[0]}{more}"
