"""The road of a merge, each stage remembered: parts, the files around them, finishing, its name."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mergekit.config import MergeConfiguration
from mergekit.graph import Task
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from mergekit_yoyo.errors import YoyoError, first_line
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
from mergekit_yoyo.merging.worker import disk_filled_up
from mergekit_yoyo.merging.workers import Crew
from mergekit_yoyo.model.checkpoint import Checkpoint
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.planning import planning
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import format_bytes, is_full_disk


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
    complete: Callable[[Path], None] | None = None,
    progress: Progress = SILENT,
) -> Merged:
    """Merge into `target`, or go on where an earlier run stopped.

    The result is tensor for tensor that of `mergekit-yaml`. All is made in a hidden folder beside
    the target, which gets the target's name when it is whole.

    merge_yaml: the merge, of any method. options: mergekit's. crew: who computes, `Local` or
    `Cluster`. fresh: forget what an earlier run did, and replace a merge of that name. complete:
    called with the merged folder before it gets its name, twice if it was killed meanwhile.

    Raises:
        YoyoError: the target holds something else or is being merged into, the beginning that is
            there is of another merge, an input changes, or disk or memory do not suffice.
    """
    started = time.perf_counter()
    place = workplace_of(target)
    _check_report(merge_yaml, place.target)
    with held(place, fresh=fresh):
        if not fresh:
            begun = Journal.read(place.journal)
            check_same(begun, merge_yaml, options)
            if was_placed(place, begun, merge_yaml.text):
                if complete:  # it may have been merged without
                    complete(place.target)
                clear_up(place)
                return Merged(place.target, 0, 0, 0, time.perf_counter() - started)
        journal = make_ready(place, fresh=fresh)
        if "merged" in journal.stages and "finished" not in journal.stages:
            _verify(place, journal, progress)
        seen = Prepared(0, len(journal.done), 0)
        if "merged" not in journal.stages:
            seen = _compute(merge_yaml, place, options, journal, crew, progress)
            journal.append(Reached(stage="merged"))
        if complete and "finished" not in journal.stages:
            journal.append(Reached(stage="finishing"))
            complete(place.model)
            journal.append(Reached(stage="finished"))
        put_in_place(place, journal)
    took = time.perf_counter() - started
    records = dict.fromkeys(report for done in journal.done.values() for report in done.records)
    return Merged(place.target, seen.parts, seen.done, seen.bytes, took, tuple(records))


def _check_report(merge_yaml: MergeYaml, target: Path) -> None:
    """Refuse a record in a folder that is not there before the merge is whole."""
    report = (merge_yaml.config.parameters or {}).get("report")
    if (
        isinstance(report, str)
        and target in Path(os.path.normpath(Path(report).absolute())).parents
    ):
        raise YoyoError(
            f"report: {report} lies in {target}, which is made last. Let the record lie beside it."
        )


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
    with executing(executor), planning("mends"), _heard(place.model, progress):
        run_merge(config, str(place.model), options, config_source=merge_yaml.text)
    return executors[0].prepared


@contextmanager
def _heard(folder: Path, progress: Progress) -> Iterator[None]:
    """mergekit logs that it could not copy a tokenizer, and ends well: on a full disk it did not.

    Raises:
        YoyoError: the disk is full.
    """
    told: list[tuple[str, BaseException | None]] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append((record.getMessage(), record.exc_info[1] if record.exc_info else None))

    logger, ear = logging.getLogger("mergekit.merge"), Ear(logging.WARNING)
    logger.addHandler(ear)
    logger.propagate = logger.isEnabledFor(logging.INFO)  # whole, with `--verbose`
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        told.append(("", error))
    finally:
        logger.removeHandler(ear)
        logger.propagate = True
    if any(wrong and is_full_disk(wrong) for _, wrong in told):
        raise disk_filled_up(folder)
    for text, wrong in told:
        progress.say(f"warning: {text}" + (f" ({first_line(wrong)})" if wrong else ""))


def _is_converted(folder: Path, journal: Journal) -> bool:
    """Whether finishing put its own files in place of the parts: their tensors are others."""
    merged = {name for done in journal.done.values() for name in done.tensors}
    try:
        with Checkpoint(folder) as checkpoint:
            return checkpoint.tensors.keys() != merged
    except YoyoError:
        return False


def _verify(place: Workplace, journal: Journal, progress: Progress) -> None:
    """Go back to merging if a part is not as it was written."""
    if "finishing" in journal.stages and _is_converted(place.model, journal):
        return
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
