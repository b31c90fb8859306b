"""A merge that an older run left incomplete, completed: what is missing is merged from the inputs.

mergekit plans and merges, with our repair of its plan; of the plan only the tensors are made that
the merge does not hold yet. They are written beside the merge's own files.
"""

import json
import shutil
import tempfile
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
    with tempfile.TemporaryDirectory(prefix="mergekit-yoyo-") as scratch:
        part = Path(scratch) / "part"
        try:
            _merge_missing(merge, merge_yaml, part, progress)
        except YoyoError:
            raise
        except Exception as error:  # of any kind: methods and files have their own
            raise YoyoError(
                f"{merge}: mergekit could not merge what is missing: {error}"
            ) from error
        if not part.is_dir():
            return []
        with Checkpoint(merge) as old, Checkpoint(part) as new:
            added = list(new.tensors)
            target = output or merge
            size = new.nbytes + (old.nbytes if output else 0)
            with staged_folder(target, overwrite=output is None, needed_bytes=size) as staging:
                mirror(merge, staging, skip=set(), link=output is None, progress=SILENT)
                files = {
                    file: f"model-completed-{k}.safetensors" for k, file in enumerate(new.files)
                }
                for file, name in files.items():
                    shutil.move(part / file, staging / name)
                placed = {name: old.file_of(name) for name in old.tensors}
                placed |= {name: files[new.file_of(name)] for name in new.tensors}
                index = {
                    "metadata": {"total_size": old.nbytes + new.nbytes},
                    "weight_map": dict(sorted(placed.items())),
                }
                (staging / INDEX_FILE).unlink(missing_ok=True)
                (staging / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    return added


def _merge_missing(merge: Path, merge_yaml: MergeYaml, part: Path, progress: Progress) -> None:
    """Have mergekit merge into `part` what `merge` does not hold; no folder if that is nothing."""
    from mergekit.architecture import get_architecture_info
    from mergekit.graph import Executor
    from mergekit.io.tasks import FinalizeModel, LoaderCache, SaveTensor
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
        targets = MergePlanner(config, architecture, options, settings).plan_to_disk(str(part))
    present = _held(merge, settings)
    saves = [
        target
        for target in targets
        if isinstance(target, SaveTensor) and target.tensor_name not in present
    ]
    if not saves:
        return
    last = FinalizeModel(tensor_save_tasks=tuple(saves), writer_task=saves[0].writer_task)
    part.mkdir()
    progress.begin("Merging what is missing", len(saves))
    for task, _ in Executor(targets=[*saves, last], math_device="cpu", storage_device="cpu").run(
        quiet=True
    ):
        if isinstance(task, SaveTensor):
            progress.advance()


def _held(merge: Path, settings: Any) -> set[str]:
    """The tensors that a merge holds, by all names that a plan may have for them."""
    from mergekit_yoyo.model.sources import Sources

    with Checkpoint(merge) as checkpoint:
        names = set(checkpoint.tensors)
    try:
        sources = Sources(settings, names)
    except YoyoError:  # a class that transformers does not have: stored as planned
        return names
    return names | set(sources.of)
