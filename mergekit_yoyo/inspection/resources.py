"""Whether disk and memory will do: sizes from headers, the peak from mergekit's own schedule."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
from huggingface_hub import constants
from mergekit.common import dtype_from_name
from mergekit.graph import Executor, TaskHandle
from mergekit.io.tasks import LoadTensor, SaveTensor
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.tokenizer import PermutedVocabulary

from mergekit_yoyo.inspection.inputs import Input
from mergekit_yoyo.inspection.planning import MergePlan
from mergekit_yoyo.inspection.remark import Remark, error, note, warning
from mergekit_yoyo.model.checkpoint import TensorInfo
from mergekit_yoyo.staging import format_bytes

PROCESS_BYTES = 450_000_000  # Python, torch and transformers, before a tensor is read


def check_disk(plan: MergePlan, inputs: Sequence[Input], output: Path) -> list[Remark]:
    """The merge's own size, and that of downloads, against the free space of their disks."""
    size = sum(info.nbytes for task in plan.tasks if (info := plan.output_of(task)) is not None)
    needed = [(_existing(output), size, "the merge")]
    downloads = sum(item.missing_bytes or 0 for item in inputs)
    if downloads:
        needed.append((_existing(Path(constants.HF_HUB_CACHE)), downloads, "downloads"))
    remarks = []
    free = shutil.disk_usage(needed[0][0]).free
    if size <= free < 2 * size and _is_renamed(plan, inputs):
        remarks.append(
            warning(
                f"disk: finishing stores the tensors of this merge as its inputs do, and writes "
                f"{format_bytes(size)} once more; {format_bytes(free)} free in {needed[0][0]}"
            )
        )
    for disk in {folder.stat().st_dev for folder, _, _ in needed}:
        here = [entry for entry in needed if entry[0].stat().st_dev == disk]
        total, free = sum(bytes_ for _, bytes_, _ in here), shutil.disk_usage(here[0][0]).free
        what = " and ".join(f"{name} {format_bytes(bytes_)}" for _, bytes_, name in here)
        text = f"disk: {what}; {format_bytes(free)} free in {here[0][0]}"
        remarks.append(error(f"{text}. Free some space.") if free < total else note(text))
    return remarks


def _is_renamed(plan: MergePlan, inputs: Sequence[Input]) -> bool:
    """Whether mergekit calls tensors otherwise than every input does: it packs experts."""
    names = {task.output_weight.name for task in plan.tasks}
    return not any(names <= item.tensors.keys() for item in inputs)


def check_memory(plan: MergePlan) -> list[Remark]:
    """The peak of a merge on the CPU against the memory of this machine."""
    peak, memory = peak_bytes(plan), psutil.virtual_memory()
    text = (
        f"memory: about {format_bytes(peak)} at the peak; {format_bytes(memory.available)} of "
        f"{format_bytes(memory.total)} are free"
    )
    if peak > memory.total + psutil.swap_memory().total:
        return [error(f"{text}. Use a larger machine, or smaller shards (--out-shard-size).")]
    return [warning(text) if peak > memory.available else note(text)]


def peak_bytes(plan: MergePlan) -> int:
    """Memory that mergekit-yaml will hold at most: its schedule, played with sizes only.

    Inputs live until their tensor is merged, and merged tensors until their shard is full. The
    mapped files of the inputs come on top in what `top` shows, but give way when memory is short.
    """
    schedule = Executor(plan.targets).schedule
    outputs = {task.output_weight.name: plan.output_of(task) for task in plan.tasks}
    held: dict[TaskHandle, int] = {}
    shard, peak, limit = 0, 0, _shard_limit(plan)
    for k, handle in enumerate(schedule.tasks):
        task, arguments = handle.task(), handle.arguments()
        if isinstance(task, LoadTensor):
            info = plan.loaded.get((task.model, task.tensor))
            dtype = dtype_from_name(task.dtype)
            held[handle] = 0 if info is None else TensorInfo(info.shape, dtype or info.dtype).nbytes
        elif isinstance(task, PermutedVocabulary):
            held[handle] = sum(held.get(a, 0) for a in arguments["tensors"].arguments().values())
        elif isinstance(task, ExecuteMergeMethodTask):
            output = outputs[task.output_weight.name]
            held[handle] = 0 if output is None else output.nbytes
        elif isinstance(task, SaveTensor):  # from now on, the shard holds it
            size = held.pop(arguments["tensor"], 0)
            shard = size if shard + size > limit else shard + size
        peak = max(peak, sum(held.values()) + shard)
        held = {key: size for key, size in held.items() if schedule.last_use_index[key] > k}
    return peak + PROCESS_BYTES


def _shard_limit(plan: MergePlan) -> int:
    saved = next(target for target in plan.targets if isinstance(target, SaveTensor))
    return int(saved.writer_task.max_shard_size)


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())
