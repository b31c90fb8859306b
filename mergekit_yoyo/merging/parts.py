"""How a merge is cut into parts: one file of the model each, laid out before a tensor is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit.common import ModelReference, dtype_from_name
from mergekit.io.tasks import SaveTensor
from mergekit.tokenizer import PermutedVocabulary
from mergekit.tokenizer.truncate import TruncatedVocabulary

from mergekit_yoyo.merging.stored import StoredModel
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.planning import gathered_weights, merged_dtype

SMALLEST_PART = 50_000_000  # bytes: below this, a part costs more than it saves


@dataclass(frozen=True)
class Output:
    """One tensor of the merge, to be computed and saved.

    save: mergekit's own task. info: its shape and dtype, as far as headers tell; None where they
    do not. bytes: its size, an estimate where info is None.
    """

    save: SaveTensor
    info: TensorInfo | None
    bytes: int

    @property
    def name(self) -> str:
        """Its name in the merge."""
        return str(self.save.tensor_name)


@dataclass(frozen=True)
class Part:
    """The tensors of one file. number: from 1."""

    number: int
    file: str
    outputs: tuple[Output, ...]

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return sum(output.bytes for output in self.outputs)


class Sizes:
    """Shapes and dtypes of what a merge will write, from the headers of its inputs.

    vocabulary: rows of the embedding, where the merge builds its tokenizer.
    """

    def __init__(
        self, stored: Mapping[ModelReference, StoredModel], vocabulary: int | None
    ) -> None:
        self._stored = stored
        self._vocabulary = vocabulary

    def output(self, save: SaveTensor) -> Output:
        """What `save` will write."""
        task = save.tensor_task
        inputs = [
            info
            for model, weight in (gathered_weights(task) or {}).items()
            if (info := self._stored[model].info(weight)) is not None
        ]
        if not inputs:
            return Output(save, None, 0)
        dtype = dtype_from_name(save.dtype) or merged_dtype(task, inputs)
        info = TensorInfo(self._shape(task, inputs), dtype)
        return Output(save, info, info.nbytes)

    def _shape(self, task: Any, inputs: Sequence[TensorInfo]) -> tuple[int, ...]:
        shape = list(inputs[0].shape)
        axis = task.output_weight.vocabulary_axis
        if axis is not None and isinstance(task.gather_tensors, PermutedVocabulary):
            shape[axis] = self._vocabulary or shape[axis]
        elif axis is not None and isinstance(task.gather_tensors, TruncatedVocabulary):
            shape[axis] = min(info.shape[axis] for info in inputs)
        return tuple(shape)


def lay_out(
    outputs: Sequence[Output],
    stored: Mapping[ModelReference, StoredModel],
    *,
    shard_bytes: int,
    least: int,
) -> list[Part]:
    """Cut the outputs into files of at most `shard_bytes`, of nearly equal size.

    The tensors come in the order in which their first model has them on its disk, so that each
    file of an input is opened and read once, in order.

    least: how many parts there should be, so that all workers have something to do; fewer where
    they would be smaller than `SMALLEST_PART`.
    """
    first = next(iter(stored.values()))
    ordered = sorted(
        outputs, key=lambda output: first.position(output.save.tensor_task.output_weight)
    )
    total = sum(output.bytes for output in ordered)
    count = max(-(-total // shard_bytes), min(least, total // SMALLEST_PART), 1)
    groups: list[list[Output]] = [[]]
    begun = filled = 0
    for output in ordered:
        full = filled - begun + output.bytes > shard_bytes
        due = filled + output.bytes / 2 > total * len(groups) / count
        if groups[-1] and (full or due):
            groups.append([])
            begun = filled
        groups[-1].append(output)
        filled += output.bytes
    names = file_names(len(groups))
    return [Part(k, names[k - 1], tuple(group)) for k, group in enumerate(groups, start=1)]


def file_names(count: int) -> list[str]:
    """The names of a model's files, as on the Hub."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)]


def index_of(files: Mapping[str, Mapping[str, int]], version: str) -> dict[str, Any]:
    """The index of several files, as mergekit writes it. files: bytes by tensor, by file."""
    return {
        "metadata": {
            "total_size": sum(sum(tensors.values()) for tensors in files.values()),
            "mergekit_version": version,
        },
        "weight_map": {name: file for file, tensors in files.items() for name in tensors},
    }
