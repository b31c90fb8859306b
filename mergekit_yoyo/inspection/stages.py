"""A file of several merges, as mergekit-multi takes it: each is looked at in turn.

A merge may name earlier ones among its models. They are not there yet, but their config and the
shapes of their tensors follow from their plans: a folder that holds just those stands for each.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.inspection.planning import MergePlan
from mergekit_yoyo.inspection.remark import note
from mergekit_yoyo.inspection.run import Inspection, inspect_merge
from mergekit_yoyo.model.checkpoint import SINGLE_FILE
from mergekit_yoyo.model.merge_yaml import MergeYaml, parse_merge_yaml, references
from mergekit_yoyo.model.tokenizer import TEMPLATE_FILES, TOKENIZER_FILES
from mergekit_yoyo.model.writing import ShardFile
from mergekit_yoyo.outside import load_yaml, read_text
from mergekit_yoyo.progress import SILENT, Progress

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration

_BETWEEN = re.compile(r"^---[ \t]*(?:#.*)?$", re.MULTILINE)
_NAME = re.compile(r"^name[ \t]*:.*\n?", re.MULTILINE)
_MOST = 100  # stages: a second of planning each
LAST = "the last stage"  # which has no name


def is_multi(text: str) -> bool:
    """Whether a YAML holds several documents."""
    return len(_documents(text)) > 1


def inspect_stages(
    file: Path,
    *,
    quick: bool = False,
    output: Path = Path(),
    progress: Progress = SILENT,
) -> dict[str, Inspection]:
    """Look at all merges of a file before they are run, in the order in which they are run.

    Args:
        file: the YAML, for mergekit-multi.
        quick: stop before the weights, and download only small files.
        output: where the last merge would be written.
        progress: told of the tensors read.

    Returns:
        What was found, by the name of the stage. The look ends with the first that would fail.

    Raises:
        YoyoError: the file cannot be read, or mergekit-multi would not accept it.
    """
    waiting = _stages(file)
    seen: dict[str, Inspection] = {}
    with TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in waiting if name != LAST}
        while waiting:
            name = _next(waiting, file)
            stage, used = _placed(waiting.pop(name), places)
            found = inspect_merge(
                stage, quick=quick or bool(used), output=output, progress=progress
            )
            found.called = {str(place): stage_name for stage_name, place in places.items()}
            if used and not quick:
                names = ", ".join(used)
                found.remarks.append(note(f"its weights are not read: {names} is not merged yet"))
            seen[name] = found
            if found.failed or found.plan is None:
                break
            if name in places and waiting:
                _write_stand_in(found, found.plan, places[name])
    return seen


def _documents(text: str) -> list[str]:
    return [part for part in _BETWEEN.split(text) if re.search(r"^[^#\s]", part, re.MULTILINE)]


def _stages(file: Path) -> dict[str, MergeYaml]:
    """The merges of a file by name, in its order."""
    stages: dict[str, MergeYaml] = {}
    documents = _documents(read_text(file))
    if len(documents) > _MOST:
        raise YoyoError(f"{file}: expected at most {_MOST} stages; got {len(documents):,}.")
    for number, text in enumerate(documents, start=1):
        source = f"{file}, stage {number}"
        data = load_yaml(text, source)
        name = data.get("name", LAST) if isinstance(data, dict) else LAST
        if not isinstance(name, str) or Path(name).name != name:
            raise YoyoError(f"{source}: name: expected the name of a folder; got {name!r}.")
        if name in stages:
            which = "have no name" if name == LAST else f"are called {name}"
            raise YoyoError(f"{file}: two stages {which}. Give each but the last a name.")
        stages[name] = parse_merge_yaml(_NAME.sub("", text, count=1), source)
    return stages


def _used(config: "MergeConfiguration") -> set[str]:
    return {ref.model.path for ref in references(config)}


def _next(waiting: Mapping[str, MergeYaml], file: Path) -> str:
    """The first stage that waits for no other."""
    for name, stage in waiting.items():
        if not _used(stage.config) & waiting.keys():
            return name
    raise YoyoError(f"{file}: the stages {', '.join(waiting)} wait for each other.")


def _placed(stage: MergeYaml, places: Mapping[str, Path]) -> tuple[MergeYaml, list[str]]:
    """A stage whose models are where earlier stages wrote them, and the stages that it uses."""
    from mergekit.scripts.multimerge import patched_config

    used = [name for name in places if name in _used(stage.config)]
    if not used:
        return stage, []
    folder = str(places[used[0]].parent)
    config, _ = patched_config(stage.config, set(places), folder)
    parsed = parse_merge_yaml(config.to_yaml(), folder)
    return replace(stage, config=parsed.config, inputs=parsed.inputs), used


def _write_stand_in(seen: Inspection, plan: MergePlan, folder: Path) -> None:
    """A folder with config, tokenizer and headers of a merge, and no values (a hole in the file).

    Raises:
        YoyoError: the shape of a tensor is not known.
    """
    folder.mkdir()
    plan.settings.save_pretrained(folder)
    infos = {}
    for task in plan.tasks:
        info = plan.output_of(task)
        if info is not None:
            infos[task.output_weight.name] = info
        elif not task.output_weight.optional:
            raise YoyoError(
                f"{task.output_weight.name}: its shape is not known before it is merged, so that "
                "the stages after it cannot be looked at. Save its inputs as safetensors."
            )
    with (folder / SINGLE_FILE).open("wb") as opened:
        ShardFile(opened, infos)
    base = seen.merge_yaml.config.base_model
    donor = next((item for item in seen.inputs if item.reference == base), seen.inputs[0])
    for file in (*TOKENIZER_FILES, *TEMPLATE_FILES):
        if (donor.folder / file).is_file():
            shutil.copy(donor.folder / file, folder / file)
