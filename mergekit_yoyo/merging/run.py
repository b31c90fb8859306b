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

from mergekit_yoyo.merging.executor import PartExecutor, Prepared, executing
from mergekit_yoyo.merging.journal import Journal, Reached
from mergekit_yoyo.merging.place import Workplace, held, put_in_place, was_placed, workplace_of
from mergekit_yoyo.merging.workers import Crew, Workers, choose_workers, crew_of, with_count
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import check_disk_space

MakeCrew = Callable[[Workers, int], Crew]


@dataclass(frozen=True)
class Merged:
    """What a run did. parts: how many it computed; kept: how many were done before."""

    folder: Path
    parts: int
    kept: int
    bytes: int
    seconds: float


def merge(
    merge_yaml: MergeYaml,
    target: Path,
    options: MergeOptions,
    *,
    workers: int | None = None,
    memory: int | None = None,
    fresh: bool = False,
    crew: MakeCrew | None = None,
    complete: Callable[[Path], None] = lambda _: None,
    progress: Progress = SILENT,
) -> Merged:
    """Merge into `target`, or go on where an earlier run stopped.

    The result is tensor for tensor that of `mergekit-yaml`. All is made in a hidden folder beside
    the target, which gets the target's name when it is whole.

    merge_yaml: the merge, of any method. options: mergekit's. workers: processes; by default as
    many as cores, memory and device allow. memory: bytes for all of them. fresh: forget what an
    earlier run did, and replace a merge of that name. crew: who computes instead of processes on
    this machine. complete: called with the merged folder before it gets its name.

    Raises:
        YoyoError: the target holds something else or is being merged into, the beginning that is
            there is of another merge, an input changes, or disk or memory do not suffice.
    """
    started = time.perf_counter()
    place = workplace_of(target)
    if not fresh and was_placed(place):
        return Merged(place.target, 0, 0, 0, time.perf_counter() - started)
    with held(place, fresh=fresh):
        journal = Journal.read(place.journal)
        if journal.layout is None:
            _clear(place)
        seen = Prepared([], len(journal.done), 0, 0)
        if "merged" not in journal.stages:
            seen = _compute(merge_yaml, place, options, journal, workers, memory, crew, progress)
            journal.append(Reached(stage="merged"))
        if "finished" not in journal.stages:
            complete(place.model)
            journal.append(Reached(stage="finished"))
        put_in_place(place, journal)
    return Merged(
        place.target, len(seen.parts), seen.done, seen.bytes, time.perf_counter() - started
    )


def _compute(
    merge_yaml: MergeYaml,
    place: Workplace,
    options: MergeOptions,
    journal: Journal,
    workers: int | None,
    memory: int | None,
    crew: MakeCrew | None,
    progress: Progress,
) -> Prepared:
    """Let mergekit run the merge with our executor; gives what there was to do."""
    found: list[Prepared] = []

    def make_crew(prepared: Prepared) -> Crew:
        found.append(prepared)
        check_disk_space(place.folder, prepared.bytes)
        chosen = choose_workers(
            options.device or "cpu", prepared.largest, count=workers, memory=memory
        )
        chosen = with_count(chosen, len(prepared.parts))
        if crew is not None:
            return crew(chosen, prepared.largest)
        progress.say(f"{chosen}")
        return crew_of(chosen)

    def executor(targets: Sequence[Task]) -> PartExecutor:
        return PartExecutor(
            targets,
            folder=place.model,
            journal=journal,
            yaml=merge_yaml.text,
            options=options,
            least_parts=workers or choose_workers(options.device or "cpu", 0, memory=memory).count,
            crew=make_crew,
            progress=progress,
        )

    progress.begin("planning", None)
    config: Any = MergeConfiguration.model_validate(yaml.safe_load(merge_yaml.text))
    with executing(executor):
        run_merge(config, str(place.model), options, config_source=merge_yaml.text)
    return found[0]


def _clear(place: Workplace) -> None:
    """Nothing is known of files that a run left before it had a layout."""
    for file in place.model.iterdir():
        file.unlink()
