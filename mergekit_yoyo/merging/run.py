"""The road of a merge, each stage remembered: parts, the files around them, finishing, its name."""

import logging
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
from mergekit_yoyo.merging.executor import (
    PartExecutor,
    Prepared,
    changes_since,
    check_same,
    executing,
)
from mergekit_yoyo.merging.journal import Journal, Reached
from mergekit_yoyo.merging.place import (
    Workplace,
    clear_up,
    held,
    in_full,
    keep_only,
    make_ready,
    placed_by,
    put_in_place,
    workplace_of,
)
from mergekit_yoyo.merging.verifying import forget_damaged
from mergekit_yoyo.merging.worker import disk_filled_up
from mergekit_yoyo.merging.workers import Crew
from mergekit_yoyo.model.checkpoint import Checkpoint
from mergekit_yoyo.model.merge_yaml import MergeYaml
from mergekit_yoyo.planning import planning
from mergekit_yoyo.progress import SILENT, Progress
from mergekit_yoyo.staging import format_bytes, is_full_disk, sync_tree


@dataclass(frozen=True)
class Merged:
    """What a run did. parts: how many it computed; kept: how many were done before. records: of
    the merge, where its YAML asks for them. problems: what is not as it was asked for."""

    folder: Path
    parts: int
    kept: int
    bytes: int
    seconds: float
    records: Sequence[str] = ()
    problems: Sequence[str] = ()

    def __str__(self) -> str:
        kept = f"{self.kept} part{'s were' if self.kept > 1 else ' was'} there already"
        if self.parts:
            said = f"merged, {format_bytes(self.bytes)} in {self.seconds:.0f} s"
            said += f", {kept}" * bool(self.kept)
        else:
            said = f"in place, its {kept}" if self.kept else "was merged already"
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
        if not fresh and (placed := placed_by(place)):
            clear_up(place)
            if changed := changes_since(placed, merge_yaml, options):
                raise YoyoError(
                    f"{place.target}: was merged already. Since then changed: "
                    f"{'; '.join(changed)}. --fresh merges anew."
                )
            if complete and "finished" not in placed.stages:
                complete(place.target)
            return Merged(place.target, 0, 0, 0, time.perf_counter() - started)
        journal = make_ready(place, fresh=fresh)
        check_same(journal, changes_since(journal, merge_yaml, options))
        if "merged" in journal.stages and "finished" not in journal.stages:
            _verify(place, journal, progress)
        seen, problems = Prepared(0, len(journal.done), 0), list[str]()
        if "merged" not in journal.stages:
            seen, problems = _compute(merge_yaml, place, options, journal, crew, progress)
            sync_tree(place.model)
            journal.append(Reached(stage="merged"))
        elif complete is None and _was_finished(place.model, journal):
            problems = ["an earlier run has finished it: --no-finish comes too late"]
        if complete and "finished" not in journal.stages:
            journal.append(Reached(stage="finishing"))
            complete(place.model)
            journal.append(Reached(stage="finished"))
        put_in_place(place, journal)
    took = time.perf_counter() - started
    records = dict.fromkeys(report for done in journal.done.values() for report in done.records)
    return Merged(place.target, seen.parts, seen.done, seen.bytes, took, [*records], problems)


def _check_report(merge_yaml: MergeYaml, target: Path) -> None:
    """Refuse a record in a folder that is not there before the merge is whole."""
    report = (merge_yaml.config.parameters or {}).get("report")
    if isinstance(report, str) and target in in_full(Path(report)).parents:
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
) -> tuple[Prepared, list[str]]:
    """Let mergekit run the merge with our executor; gives what there was to do, and what mergekit
    failed at."""
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
    with executing(executor), planning("mends"), _heard(place.model, progress) as problems:
        run_merge(config, str(place.model), options, config_source=merge_yaml.text)
    return executors[0].prepared, problems


@contextmanager
def _heard(folder: Path, progress: Progress) -> Iterator[list[str]]:
    """mergekit logs that it could not copy a tokenizer, and ends well; gives what it failed at.

    Raises:
        YoyoError: the disk is full.
    """
    told: list[BaseException] = []
    problems: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.exc_info and (wrong := record.exc_info[1]):
                told.append(wrong)
                text += f" ({first_line(wrong)})"
            if record.levelno >= logging.ERROR:
                problems.append(text)
            else:
                progress.say(f"warning: {text}")

    logger, ear = logging.getLogger("mergekit.merge"), Ear(logging.WARNING)
    logger.addHandler(ear)
    logger.propagate = logger.isEnabledFor(logging.INFO)  # whole, with `--verbose`
    try:
        yield problems
    except OSError as error:
        if not is_full_disk(error):
            raise
        told.append(error)
    finally:
        logger.removeHandler(ear)
        logger.propagate = True
    if any(map(is_full_disk, told)):
        raise disk_filled_up(folder)


def _was_finished(folder: Path, journal: Journal) -> bool:
    """Whether an earlier run finished the model, be it that it did not come to note that: the
    tensors are others then than those of the parts."""
    if "finished" in journal.stages:
        return True
    if "finishing" not in journal.stages:
        return False
    merged = {name for done in journal.done.values() for name in done.tensors}
    try:
        with Checkpoint(folder) as checkpoint:
            return checkpoint.tensors.keys() != merged
    except YoyoError:
        return False


def _verify(place: Workplace, journal: Journal, progress: Progress) -> None:
    """Go back to merging if a part is not as it was written."""
    if _was_finished(place.model, journal):
        return
    written = [file for file, done in journal.done.items() if done.tensors]
    if forget_damaged(place.model, journal, written, progress, "checking what is merged"):
        progress.say("what was merged is not as it was written: merged again")
        keep_only(place.model, journal.done)
        journal.reopen()
