"""A merge that an older run left incomplete, completed: what is missing is merged from the inputs.

mergekit plans and merges, with our repair of its plan; of the plan only the tensors are made that
the merge does not hold yet. They are written beside the merge's own files.
"""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.finish.run import mirror
from mergekit_yoyo.model.checkpoint import INDEX_FILE, Checkpoint
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import staged_folder


def complete(
    merge: Path, merge_yaml: MergeYaml, *, output: Path | None = None, progress: Progress = SILENT
) -> list[str]:
    """Merge what a merge lacks of its inputs, by the YAML's own method, and add it.

    Args:
        merge: the folder of the merge, finished or not.
        merge_yaml: its YAML; the inputs must be where it says.
        output: where to write instead, leaving the merge alone.
        progress: told of the tensors that are merged.

    Returns:
        The tensors that were added; none if nothing was missing, and then nothing is written.

    Raises:
        YoyoError: mergekit refuses the merge, or an input is not there.
    """
    try:
        saves = _missing(merge, merge_yaml)
    except YoyoError:
        raise
    except Exception as error:  # of any kind: methods, architectures and files have their own
        raise YoyoError(f"{merge}: mergekit cannot plan what is missing: {error}") from error
    if not saves:
        return []
    with Checkpoint(merge) as old:
        size = old.nbytes if output else 0
        with staged_folder(output or merge, overwrite=not output, needed_bytes=size) as staging:
            mirror(merge, staging, skip=set(), link=output is None, progress=SILENT)
            part = staging / ".part"
            part.mkdir()
            try:
                _execute(saves, part, progress)
            except Exception as error:  # of any kind, as above
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise  # the staging tells of a full disk
                raise YoyoError(f"{merge}: what is missing cannot be merged: {error}") from error
            _add(old, part, staging)
    return [save.tensor_name for save in saves]


def _missing(merge: Path, merge_yaml: MergeYaml) -> list[Any]:
    """mergekit's tasks that save the tensors which the merge does not hold."""
    from mergekit.architecture import get_architecture_info
    from mergekit.io.tasks import LoaderCache, SaveTensor
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    from mergekit_yoyo.planning import planning

    config, options = merge_yaml.config.model_copy(deep=True), MergeOptions()
    architecture = get_architecture_info(config, options)
    cache = LoaderCache()
    cache.setup(options)
    for model in config.referenced_models():
        cache.get(model)
    settings = _model_out_config(config, architecture)
    with planning("mends"):
        targets = MergePlanner(config, architecture, options, settings).plan_to_disk("unwritten")
    held = _held(merge, settings)
    saves = [target for target in targets if isinstance(target, SaveTensor)]
    return [save for save in saves if save.tensor_name not in held]


def _held(merge: Path, settings: Any) -> set[str]:
    """The tensors that a merge holds, by all names that a plan may have for them."""
    from mergekit_yoyo.model.sources import Sources

    with Checkpoint(merge) as checkpoint:
        names = set(checkpoint.tensors)
    try:
        return names | set(Sources(settings, names).of)
    except YoyoError:  # a class that transformers does not have: stored as planned
        return names


def _execute(saves: list[Any], part: Path, progress: Progress) -> None:
    """Have mergekit merge and write the tensors of `saves` into the folder `part`."""
    from mergekit.graph import Executor
    from mergekit.io.tasks import FinalizeModel, SaveTensor

    writer = saves[0].writer_task.model_copy(update={"out_path": str(part)})
    ours = [save.model_copy(update={"writer_task": writer}) for save in saves]
    last = FinalizeModel(tensor_save_tasks=tuple(ours), writer_task=writer)
    progress.begin("Merging what is missing", len(ours))
    executor = Executor(targets=[*ours, last], math_device="cpu", storage_device="cpu")
    for task, _ in executor.run(quiet=True):
        if isinstance(task, SaveTensor):
            progress.advance()


def _add(old: Checkpoint, part: Path, staging: Path) -> None:
    """Move the files of `part` among those of the merge, and write one index over all."""
    with Checkpoint(part) as new:
        earlier = len(list(staging.glob("model-completed-*.safetensors")))
        files = {
            file: f"model-completed-{earlier + k}.safetensors" for k, file in enumerate(new.files)
        }
        placed = {name: old.file_of(name) for name in old.tensors}
        placed |= {name: files[new.file_of(name)] for name in new.tensors}
        size = old.nbytes + new.nbytes
    for file, name in files.items():
        (part / file).rename(staging / name)
    shutil.rmtree(part)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))}
    (staging / INDEX_FILE).unlink(missing_ok=True)  # it may be a second name of the merge's own
    (staging / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
