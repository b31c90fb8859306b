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

from mergekit_yoyo.merging.adapters import with_adapters
from mergekit_yoyo.merging.executor import PartExecutor, Prepared, check_same, executing
from mergekit_yoyo.merging.journal import Journal, Reached
from mergekit_yoyo.merging.place import (
    Workplace,
    clear_up,
    held,
    keep_only,
    make_ready,
    put_in_place,
    was_placed,
    workplace_of,
)
from mergekit_yoyo.merging.verifying import is_sound
from mergekit_yoyo.merging.workers import Crew
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.planning import planning
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import format_bytes


@dataclass(frozen=True)
class Merged:
    """What a run did. parts: how many it computed; kept: how many were done before. records: of
    the merge, where its YAML asks for them."""

    folder: Path
    parts: int
    kept: int
    bytes: int
    seconds: float
    records: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.parts:
            said = "was merged already"
        else:
            plural = "s were" if self.kept > 1 else " was"
            kept = f", {self.kept} part{plural} there already" if self.kept else ""
            said = f"merged, {format_bytes(self.bytes)} in {self.seconds:.0f} s{kept}"
        return said + "".join(f"; its record is {record}" for record in self.records)


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
    with held(place, fresh=fresh):
        if not fresh:
            check_same(Journal.read(place.journal), merge_yaml, options)
            if was_placed(place):
                clear_up(place)
                return Merged(place.target, 0, 0, 0, time.perf_counter() - started)
        journal = make_ready(place, fresh=fresh)
        if "merged" in journal.stages and "finished" not in journal.stages:
            _verify(place, journal, progress)
        seen = Prepared(0, len(journal.done), 0)
        if "merged" not in journal.stages:
            seen = _compute(merge_yaml, place, options, journal, crew, progress)
            journal.append(Reached(stage="merged"))
        if "finished" not in journal.stages:
            complete(place.model)
            journal.append(Reached(stage="finished"))
        put_in_place(place, journal)
    took = time.perf_counter() - started
    records = dict.fromkeys(report for done in journal.done.values() for report in done.records)
    return Merged(place.target, seen.parts, seen.done, seen.bytes, took, tuple(records))


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
                merge_yaml=merge_yaml,
                options=options,
                crew=crew,
                progress=progress,
            )
        )
        return executors[0]

    config: Any = MergeConfiguration.model_validate(yaml.safe_load(merge_yaml.text))
    options = with_adapters(config, options, place.adapted, progress)
    progress.begin("planning", None)
    with executing(executor), planning("mends"):  # whichever method: nothing is lost
        run_merge(config, str(place.model), options, config_source=merge_yaml.text)
    return executors[0].prepared


def _verify(place: Workplace, journal: Journal, progress: Progress) -> None:
    """Go back to merging if a part is not as it was written, or finishing changed it."""
    written = {file: done for file, done in journal.done.items() if done.tensors}
    progress.begin("checking what is merged", len(written), "parts")
    for file, done in written.items():
        if not is_sound(place.model / file, done):
            del journal.done[file]
        progress.advance()
    if written.keys() - journal.done.keys():
        progress.say("what was merged is not as it was written: merged again")
        keep_only(place.model, journal.done)
        journal.reopen()
