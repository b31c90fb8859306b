"""The road of a merge, each stage remembered: parts, the files around them, finishing, its name."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from mergekit_yoyo.merging.executor import PartExecutor, Prepared, check_same, executing
from mergekit_yoyo.merging.journal import Journal, Reached
from mergekit_yoyo.merging.place import Workplace, held, put_in_place, was_placed, workplace_of
from mergekit_yoyo.merging.verifying import is_sound
from mergekit_yoyo.merging.workers import Crew
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.planning import planning
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import format_bytes


@dataclass(frozen=True)
class Merged:
    """What a run did. parts: how many it computed; kept: how many were done before."""

    folder: Path
    parts: int
    kept: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        if not self.parts:
            return "was merged already"
        plural = "s were" if self.kept > 1 else " was"
        kept = f", {self.kept} part{plural} there already" if self.kept else ""
        return f"merged, {format_bytes(self.bytes)} in {self.seconds:.0f} s{kept}"


def merge(
    merge_yaml: MergeYaml,
    target: Path,
    options: MergeOptions,
    crew: Crew,
    *,
    fresh: bool = False,
    complete: Callable[[Path], None] = lambda _: None,
    progress: Progress = SILENT,
) -> Merged:
    """Merge into `target`, or go on where an earlier run stopped.

    The result is tensor for tensor that of `mergekit-yaml`. All is made in a hidden folder beside
    the target, which gets the target's name when it is whole.

    merge_yaml: the merge, of any method. options: mergekit's. crew: who computes, `Local` or
    `Cluster`. fresh: forget what an earlier run did, and replace a merge of that name. complete:
    called with the merged folder before it gets its name.

    Raises:
        YoyoError: the target holds something else or is being merged into, the beginning that is
            there is of another merge, an input changes, or disk or memory do not suffice.
    """
    started = time.perf_counter()
    place = workplace_of(target)
    if not fresh:
        if (begun := Journal.read(place.journal)).stages:  # of parts, the executor asks it
            check_same(begun, merge_yaml.text, options)
        if was_placed(place):
            return Merged(place.target, 0, 0, 0, time.perf_counter() - started)
    with held(place, fresh=fresh):
        journal = Journal.read(place.journal)
        if journal.stages == ["merged"] and not _sound(place, journal):
            progress.say("what was merged is not as it was written: merged again")
            journal = Journal(place.journal)
        if journal.layout is None:
            _clear(place)
        seen = Prepared(0, len(journal.done), 0)
        if "merged" not in journal.stages:
            seen = _compute(merge_yaml, place, options, journal, crew, progress)
            journal.append(Reached(stage="merged"))
        if "finished" not in journal.stages:
            complete(place.model)
            journal.append(Reached(stage="finished"))
        put_in_place(place, journal)
    return Merged(place.target, seen.parts, seen.done, seen.bytes, time.perf_counter() - started)


def _compute(
    merge_yaml: MergeYaml,
    place: Workplace,
    options: MergeOptions,
    journal: Journal,
    crew: Crew,
    progress: Progress,
) -> Prepared:
    """Let mergekit run the merge with our executor; gives what there was to do."""
    executors: list[PartExecutor] = []

    def executor(targets: Sequence[Task]) -> PartExecutor:
        executors.append(
            PartExecutor(
                targets,
                folder=place.model,
                journal=journal,
                yaml=merge_yaml.text,
                options=options,
                crew=crew,
                progress=progress,
            )
        )
        return executors[0]

    progress.begin("planning", None)
    config: Any = MergeConfiguration.model_validate(yaml.safe_load(merge_yaml.text))
    with executing(executor), planning("mends"):  # whichever method: nothing is lost
        run_merge(config, str(place.model), options, config_source=merge_yaml.text)
    return executors[0].prepared


def _sound(place: Workplace, journal: Journal) -> bool:
    """Whether all parts are as they were written."""
    return all(
        is_sound(place.model / file, done) for file, done in journal.done.items() if done.tensors
    )


def _clear(place: Workplace) -> None:
    """Nothing is known of files that a run left before it had a layout."""
    for file in place.model.iterdir():
        file.unlink()
