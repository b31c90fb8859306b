"""Which tensors of a checkpoint each weight of a plan is read from, looked up once a model.

mergekit matches all keys of a checkpoint anew for every packed tensor, by the model type at the top
of its config only. Here `model.sources` answers for the whole class at once, parts included.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, reduce
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from mergekit.architecture import WeightInfo, arch_info_for_config
from mergekit.architecture.json_definitions import NAME_TO_ARCH
from mergekit.common import ImmutableMap, ModelReference, dtype_from_name
from mergekit.graph import Task
from mergekit.io.lazy_tensor_loader import ShardedTensorIndex
from mergekit.io.tasks import GatherTensors, LoaderCache
from safetensors import safe_open

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.model.checkpoint import TensorInfo, read_header, read_pickled_header
from mergekit_yoyo.model.sources import Sources
from mergekit_yoyo.planning.opened import is_opened

LOG = logging.getLogger(__name__)

_OPEN_FILES = 8  # of one model at a time


class Reader:
    """One input of a merge: the names in its files, and what they become in its model class.

    trusts: whether code that comes with the model may be run; asked when the reader is made, since
    mergekit's threads do not know it.
    """

    def __init__(self, model: ModelReference, index: ShardedTensorIndex) -> None:
        self.model, self.index = model, index
        self.names = index.tensor_paths
        self.trusts: bool = LoaderCache().trust_remote_code
        self._infos: dict[str, dict[str, TensorInfo]] = {}
        self._open: dict[tuple[str, str], Any] = {}
        self._lock = Lock()

    @cached_property
    def config(self) -> Any:
        """Its configuration, as transformers reads it.

        Raises:
            YoyoError: transformers does not read it.
        """
        try:
            return self.model.config(trust_remote_code=self.trusts)
        except (OSError, ValueError) as error:
            raise YoyoError(f"{self.model}: its config.json cannot be read ({error}).") from error

    @property
    def model_types(self) -> tuple[str, ...]:
        """The model type at the top of its config, and that of its language model."""
        configs = [self.config, getattr(self.config, "text_config", None)]
        return tuple(config.model_type for config in configs if config is not None)

    @cached_property
    def is_plain(self) -> bool:
        """Whether each tensor of its files is a weight of mergekit's definition, by name: then none
        is packed or renamed, and its model class, which is slow to load, need not be asked."""
        architectures = self.config.architectures or []
        if len(architectures) != 1 or architectures[0] not in NAME_TO_ARCH:
            return False
        definition = arch_info_for_config(self.config)
        return definition is not None and self.names.keys() <= {
            weight.name for weight in definition.all_weights(self.config)
        }

    @cached_property
    def sources(self) -> Sources | None:
        """None where transformers does not have the class; then only names say what is what.

        Raises:
            YoyoError: its config cannot be read.
        """
        config = self.config  # a file that cannot be read is not a class that is not known
        try:
            return _resolved(config, frozenset(self.names))
        except Exception as error:  # of any kind: custom classes fail in their own ways
            LOG.warning("%s: packed or renamed tensors are not looked up: %s", self.model, error)
            return None

    def read_from(self, weight: WeightInfo) -> tuple[str, ...]:
        """The checkpoint's tensors that `weight` is read from; none if it has no such weight.

        The weight's own name comes first, then its other names, as in mergekit, and last what
        transformers would convert.
        """
        for name in (weight.name, *(weight.aliases or ()), *(weight.tied_names or ())):
            if name in self.names:
                return (name,)
        target = self.converted(weight)
        return () if target is None or self.sources is None else self._of(target)

    def converted(self, weight: WeightInfo) -> str | None:
        """The name under which a weight that is not stored as such can be had by converting."""
        if self.is_plain or self.sources is None:
            return None
        names = (weight.name, *(weight.aliases or ()))
        return next((name for name in names if name in self.sources.of), None)

    def lacks(self, name: str) -> bool:
        """Whether its model class needs a weight of this name (or may), and it has none."""
        return self.sources is None or self.sources.lacks(name)

    def has(self, name: str) -> bool:
        """Whether a tensor of its files goes into its model class."""
        return self.sources is not None and self.renamed(name) in self.sources.of

    def renamed(self, name: str) -> str:
        """A name of its files as its model class would call it."""
        return name if self.sources is None else self.sources.renamed[name]

    def info(self, name: str) -> TensorInfo | None:
        """Shape and dtype of a tensor; None if only its name is at hand."""
        held = self.names[name]  # of thousands of experts in the same few files: no path for each
        if held not in self._infos:
            self._infos[held] = _infos_of(Path(self.index.base_path) / held)
        return self._infos[held].get(name)

    def loads(
        self, weight: WeightInfo, info: Callable[[str], TensorInfo | None] | None = None
    ) -> tuple[bool, TensorInfo | None]:
        """Whether a merge finds `weight`, and what it loads for it, as far as headers tell.

        info: of a tensor by its name; by default from the headers of the files.
        """
        info = info or self.info
        names, target = self.read_from(weight), self.converted(weight)
        if len(names) == 1 and (names[0] == weight.name or target is None):
            return True, info(names[0])
        infos = {name: found for name in names if (found := info(name)) is not None}
        if not names or len(infos) < len(names) or target is None or self.sources is None:
            return bool(names), None
        tensor = self.sources.convert(
            target,
            lambda name: torch.empty(infos[name].shape, dtype=infos[name].dtype, device="meta"),
        )
        return True, TensorInfo(tuple(tensor.shape), tensor.dtype)

    def read(self, name: str, device: str) -> torch.Tensor:
        """A tensor of its files, from a file that stays open.

        mergekit's own loader lists all names of a file for every tensor that it reads: minutes for
        thousands of experts in one file.
        """
        file = self.names[name]
        if not file.endswith(".safetensors"):
            tensor: torch.Tensor = LoaderCache().get(self.model).get_tensor(name, device=device)
            return tensor
        with self._lock:
            key = (file, device)
            if key not in self._open:
                while len(self._open) >= _OPEN_FILES:
                    self._open.pop(next(iter(self._open)))
                path = Path(self.index.base_path) / file
                self._open[key] = safe_open(path, framework="pt", device=device)
            opened = self._open[key]
        tensor = opened.get_tensor(name)
        return tensor

    def _of(self, target: str) -> tuple[str, ...]:
        assert self.sources is not None
        return tuple(self.sources.of[target].names)


def _infos_of(file: Path) -> dict[str, TensorInfo]:
    if not file.is_file():
        return {}
    if file.suffix == ".safetensors":
        return dict(read_header(file))
    return read_pickled_header(file)


_readers: dict[ModelReference, Reader] = {}


_same: dict[tuple[type, str, frozenset[str]], Sources] = {}
_KEPT = 8  # of _same: a merge's inputs seldom are of more kinds than one


def _resolved(config: Any, names: frozenset[str]) -> Sources:
    """The names of a checkpoint resolved for its class, once for all that say the same: a second a
    model of thousands of experts."""
    said = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    key = (type(config), str(said), names)
    if key not in _same:
        while len(_same) >= _KEPT:
            del _same[next(iter(_same))]
        _same[key] = Sources(config, names)
    return _same[key]


def own_device(device: str | None) -> str:
    """A device to read to: `cuda` is this process's own GPU, where safetensors takes the first."""
    return f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device or "cpu"


def opened_reader(model: object) -> Reader | None:
    """The reader of an input that mergekit opened; None: a file of raw tensors, or no model."""
    return reader_of(model) if isinstance(model, ModelReference) and is_opened(model) else None


def reader_of(model: ModelReference) -> Reader:
    """The reader of an input, made once as long as its files are the same."""
    index = LoaderCache().get(model).index
    reader = _readers.get(model)
    if reader is None or reader.index is not index:
        reader = _readers[model] = Reader(model, index)
    return reader


class LoadConverted(Task[torch.Tensor]):  # type: ignore[misc]  # mergekit is not typed
    """A weight that the checkpoint stores otherwise, converted as transformers converts it."""

    model: ModelReference
    target: str
    dtype: str | None = None
    device: str | None = None

    def arguments(self) -> dict[str, Task]:
        """Nothing: it reads files."""
        return {}

    def execute(self, **_: Any) -> torch.Tensor:
        """Read and convert."""
        reader, device = reader_of(self.model), own_device(self.device)
        assert reader.sources is not None
        tensor = reader.sources.convert(self.target, lambda name: reader.read(name, device)).to(
            device
        )
        wanted = dtype_from_name(self.dtype)
        return tensor if wanted is None else tensor.to(wanted)

    def priority(self) -> int:
        """That of mergekit's own loading."""
        return -1000


class GatherConverted(GatherTensors, frozen=True):  # type: ignore[misc, call-arg]
    """mergekit's gathering of a weight's inputs, those converted that are not stored as such."""

    converted: ImmutableMap[ModelReference, str]

    def arguments(self) -> dict[str, Task]:
        """The tasks that load, by the keys that mergekit gives them."""
        tasks: dict[str, Task] = super().arguments()
        for model, target in self.converted.items():
            weight = self.weight_info[model]
            tasks[f"{model}:{weight.name}"] = LoadConverted(
                model=model,
                target=target,
                dtype=weight.force_dtype or self.dtype,
                device=self.device,
            )
        return tasks


def gather_converted(gather: GatherTensors) -> GatherTensors:
    """`gather`, or one that converts what mergekit would match anew or not find."""
    converted = {}
    for model, weight in gather.weight_info.items():
        reader = reader_of(model)
        names = (weight.name, *(weight.aliases or ()), *(weight.tied_names or ()))
        if not any(name in reader.names for name in names):
            target = reader.converted(weight)
            if target is not None:
                converted[model] = target
    if not converted:
        return gather
    return GatherConverted(
        weight_info=gather.weight_info,
        dtype=gather.dtype,
        device=gather.device,
        converted=ImmutableMap(data=converted),
    )


def gathered_weights(task: Any) -> Mapping[ModelReference, WeightInfo] | None:
    """The weight that a merge task gets from each model; None if it is not of checkpoints."""
    weights = getattr(_gathering(task), "weight_info", None)
    return None if weights is None else dict(weights.items())


def merged_dtype(task: Any, inputs: Sequence[TensorInfo]) -> torch.dtype:
    """The dtype that a task merges in: mergekit casts on loading, and then the widest of the
    inputs decides. inputs: what headers say of them, one at least."""
    loaded = task.output_weight.force_dtype or getattr(_gathering(task), "dtype", None)
    dtype: torch.dtype | None = dtype_from_name(loaded)
    return dtype or reduce(torch.promote_types, [info.dtype for info in inputs])


def _gathering(task: Any) -> Any:
    """What gathers a task's inputs, whatever is done to their vocabulary after it."""
    return getattr(task.gather_tensors, "gather_tensors", task.gather_tensors)
