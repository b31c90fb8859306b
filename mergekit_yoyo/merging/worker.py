"""One part of a merge, computed by mergekit's executor and made durable. Runs in any process."""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ModelReference, dtype_from_name
from mergekit.graph import Executor, Task, TaskUniverse
from mergekit.io.tasks import LoaderCache, SaveTensor
from mergekit.options import MergeOptions

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.merging.allocation import reuse_freed_memory
from mergekit_yoyo.merging.journal import DonePart
from mergekit_yoyo.merging.loading import open_inputs
from mergekit_yoyo.merging.parts import Output, Part
from mergekit_yoyo.merging.stored import FileIdentity, file_identity
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.model.writing import ShardFile
from mergekit_yoyo.record import recorder
from mergekit_yoyo.staging import is_full_disk, sync

UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Job:
    """All that a process needs to compute a part.

    folder: where the part's file goes. run: a word of this run's own, so that a worker that an
    earlier run left behind writes to another file. known: values of tasks that were computed
    already (the tokenizer). inputs: identities of the inputs' files, by folder; they must not
    change meanwhile.
    """

    part: Part
    folder: Path
    run: str
    options: MergeOptions
    models: tuple[ModelReference, ...]
    known: tuple[tuple[Task, Any], ...]
    inputs: Mapping[str, Mapping[str, FileIdentity]]


class UnforeseenError(Exception):
    """A tensor is not as its headers announced: the part is held in memory instead."""


def run_job(job: Job, device: str, tell: Callable[[int], None]) -> DonePart:
    """Compute a part, write it, and make it durable under its name.

    device: for the arithmetic. tell: called with the bytes of each tensor.

    Raises:
        YoyoError: an input changed meanwhile, or the disk is full.
    """
    reuse_freed_memory()
    if device.startswith("cuda:"):  # what `--read-to-gpu` reads to `cuda` comes here too
        torch.cuda.set_device(device)
    options = job.options.model_copy(update={"device": device})
    LoaderCache().setup(options)
    import mergekit_yoyo.method  # noqa: F401  # the method is known where the start-up hook is not

    open_inputs(job.models)
    unfinished = job.folder / f".{job.part.file}.{job.run}{UNFINISHED}"
    with recorder.collecting() as records, _removed_on_failure(unfinished):
        try:
            tensors = _stream(job, options, unfinished, tell)
        except UnforeseenError:
            records.clear()
            tensors = _hold(job, options, unfinished)
        check_unchanged(job.inputs)
        sync(unfinished)
        unfinished.replace(job.folder / job.part.file)
    sync(job.folder)
    return DonePart(
        file=job.part.file,
        tensors={name: size for name, (size, _) in tensors.items()},
        checksum={name: check for name, (_, check) in tensors.items()},
        records=records,
    )


@contextmanager
def _removed_on_failure(file: Path) -> Iterator[None]:
    """A file that does not become whole goes; a full disk is told in our words."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        if is_full_disk(error):
            raise disk_filled_up(file.parent) from None
        raise


def disk_filled_up(folder: Path) -> YoyoError:
    """The error for a disk without room for what is left of a merge."""
    return YoyoError(
        f"{folder}: the disk filled up while the merge was written. Free some space, then run the "
        "same command again: the parts that are done are kept."
    )


def _stream(
    job: Job, options: MergeOptions, file: Path, tell: Callable[[int], None]
) -> dict[str, tuple[int, int]]:
    """Write each tensor to its place as soon as it is computed: one is in memory at a time."""
    infos = {o.name: o.info for o in job.part.outputs if o.info is not None}
    if len(infos) < len(job.part.outputs):
        raise UnforeseenError
    written = {}
    with file.open("wb") as opened:
        shard = ShardFile(opened, infos)
        for output in job.part.outputs:
            tensor = compute(output, options, job.known)
            if tensor is None or TensorInfo(tuple(tensor.shape), tensor.dtype) != output.info:
                raise UnforeseenError
            shard.write(output.name, tensor)
            written[output.name] = (tensor.nbytes, checksum(tensor))
            tell(tensor.nbytes)
    return written


def _hold(job: Job, options: MergeOptions, file: Path) -> dict[str, tuple[int, int]]:
    """Compute all tensors, then write them."""
    found: dict[str, torch.Tensor] = {}
    for output in job.part.outputs:
        tensor = compute(output, options, job.known)
        if tensor is not None:
            found[output.name] = tensor
    infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in found.items()}
    with file.open("wb") as opened:
        shard = ShardFile(opened, infos)
        for name, tensor in found.items():
            shard.write(name, tensor)
    return {name: (tensor.nbytes, checksum(tensor)) for name, tensor in found.items()}


def compute(
    output: Output, options: MergeOptions, known: tuple[tuple[Task, Any], ...]
) -> torch.Tensor | None:
    """The value that mergekit would save: contiguous, on the CPU, cast as its SaveTensor does."""
    save: SaveTensor = output.save
    if options.random_seed is not None:
        _seed(options.random_seed, output.name)
    universe = TaskUniverse([save.tensor_task])
    values = {
        handle: value for task, value in known if (handle := universe.get_handle(task)) is not None
    }
    executor = Executor(
        [universe.get_handle(save.tensor_task)],
        math_device=torch.device(options.device or "cpu"),
        storage_device=torch.device((options.device or "cpu") if options.low_cpu_memory else "cpu"),
        cached_values=values or None,
    )
    ((_, tensor),) = executor.run(quiet=True)
    if tensor is None:
        if not save.optional:
            raise YoyoError(f"{output.name}: no value for this tensor, which the merge needs.")
        return None
    if save.dtype:
        tensor = tensor.to(dtype=dtype_from_name(save.dtype))
    result: torch.Tensor = tensor.contiguous().cpu()
    return result


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _seed(seed: int, name: str) -> None:
    """Random methods draw for each tensor anew, whichever process computes it."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def check_unchanged(inputs: Mapping[str, Mapping[str, FileIdentity]]) -> None:
    """Refuse what was computed from files that are not as they were.

    Raises:
        YoyoError: names the file.
    """
    for folder, files in inputs.items():
        for name, known in files.items():
            if file_identity(Path(folder) / name) != known:
                raise YoyoError(
                    f"{Path(folder) / name}: this input changed while it was merged. Let it "
                    "settle, then start the merge anew with --fresh."
                )
