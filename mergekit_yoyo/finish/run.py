"""Finishing a merge as planned: written beside it, then swapped in."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from mergekit_yoyo import card as cards
from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish.plan import FinishPlan
from mergekit_yoyo.model.checkpoint import INDEX_FILE, Checkpoint
from mergekit_yoyo.model.writing import DEFAULT_SHARD_SIZE, shard, write_checkpoint
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import mend_leftovers, staged_folder


def finish(
    plan: FinishPlan,
    *,
    output: Path | None = None,
    max_shard_size: int | str = DEFAULT_SHARD_SIZE,
    online: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Carry out a plan: the merge, or a copy of it, comes to look like its inputs.

    The work is done in a folder beside the target and swapped in at the end; whatever happens
    before leaves the merge as it was. Where nothing differs, nothing is touched.

    Args:
        plan: from `plan_finish`.
        output: where to write instead, leaving the merge alone.
        max_shard_size: of the weight files, if they are rewritten; `5GB`, `500MB`, or bytes.
        online: let the Hub validate the card before anything is written.
        progress: told of the bytes that are written.

    Returns:
        The finished folder.

    Raises:
        YoyoError: the disk is full, `output` exists, the card is refused, or a tensor is damaged.
    """
    shard(plan.layout.targets, max_shard_size)  # a size that makes no sense is refused first
    if online:
        cards.validate_online(plan.files["README.md"].decode())
    if output is None and not plan.differences:
        mend_leftovers(plan.merge.resolve())  # of a run that was killed when all but this was done
        return plan.merge
    if output is not None and output.resolve() == plan.merge.resolve():
        raise YoyoError(f"--output {output}: this is the merge itself. Leave --output out.")
    if output is not None and plan.merge.resolve() in output.resolve().parents:
        raise YoyoError(f"--output {output}: this is inside the merge. Choose a folder beside it.")

    with Checkpoint(plan.merge) as checkpoint:
        converts = bool(plan.layout.changed)
        stale = {*checkpoint.files, INDEX_FILE} if converts else set[str]()
        moved = sum(info.nbytes for info in plan.layout.targets.values())
        needed = moved if converts or output is not None else 0
        needed += sum(len(content) for content in plan.files.values())
        target = output or plan.merge
        with staged_folder(target, overwrite=output is None, needed_bytes=needed) as staging:
            if converts or output is not None:
                progress.begin("Writing weights", moved, "bytes")
            # Unchanged files are the same data under a second name, unless they are to be a copy.
            mirror(plan.merge, staging, skip=stale, link=output is None, progress=progress)
            for name, content in plan.files.items():
                file = staging / name
                file.parent.mkdir(exist_ok=True)
                file.unlink(missing_ok=True)  # it may be a second name of the merge's own
                file.write_bytes(content)
            if converts:
                tensors = _told(plan.layout.convert(checkpoint.read), progress)
                write_checkpoint(staging, plan.layout.targets, tensors, max_shard_size)
    return target


def mirror(
    source: Path,
    target: Path,
    *,
    skip: set[str],
    link: bool,
    progress: Progress,
) -> None:
    """Make `target` hold what `source` holds, but for the files `skip` at its top.

    link: the same data under a second name where the disk has that, and links stay links; else a
    copy that stands on its own.
    """
    for old in sorted(source.iterdir()):
        new = target / old.name
        if old.name in skip:
            continue
        if link and old.is_symlink():
            new.symlink_to(old.readlink())
        elif old.is_dir():
            new.mkdir()
            mirror(old, new, skip=set(), link=link, progress=progress)
            shutil.copystat(old, new)
        elif not (link and _linked(old, new)):
            shutil.copy2(old, new)
            if old.suffix == ".safetensors":
                progress.advance(new.stat().st_size)


def _linked(old: Path, new: Path) -> bool:
    """Whether `new` could be made a second name of the file `old`: some disks have no such."""
    with suppress(OSError):
        os.link(old, new)
        return True
    return False


def _told(
    tensors: Iterator[tuple[str, torch.Tensor]], progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in tensors:
        yield name, tensor
        progress.advance(tensor.nbytes)
