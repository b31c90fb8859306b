"""Where a merge is made before it is whole: a hidden folder beside its target, held by one run."""

import fcntl
import os
import shutil
import socket
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.merging.journal import Journal, Reached
from mergekit_yoyo.model.merge_yaml import MERGE_FILE
from mergekit_yoyo.staging import mend_leftovers, move_into_place, sync

_LOCK = "lock"  # in the workplace, held by the run that is at it


@dataclass(frozen=True)
class Workplace:
    """target: what the merge will be called. folder: everything until then."""

    target: Path
    folder: Path

    @property
    def model(self) -> Path:
        """The model to be; it has the target's name, which mergekit writes into the card."""
        return self.folder / "model" / self.target.name

    @property
    def journal(self) -> Path:
        """What the merge is, and which of its parts are done."""
        return self.folder / "journal.jsonl"

    @property
    def done(self) -> Path:
        """Where the journal lies once the model has its name and only clearing up remains."""
        return self.folder.with_name(f"{self.folder.name}-done")

    @property
    def adapted(self) -> Path:
        """Models with their LoRA adapters, unless the user keeps them elsewhere."""
        return self.folder / "adapted"


def workplace_of(target: Path) -> Workplace:
    """The hidden folder that belongs to a target."""
    target = in_full(target)
    return Workplace(target, target.parent / f".{target.name}.merging")


def in_full(path: Path) -> Path:
    """A path from the root, without `..`; links in it stay."""
    return Path(os.path.normpath(path.absolute()))


@contextmanager
def held(place: Workplace, *, fresh: bool) -> Iterator[None]:
    """Hold the workplace of a target for one run.

    Raises:
        YoyoError: another run holds it, nothing can be written, or where nothing of an earlier run
            is here, the target is refused by `check_target`.
    """
    if not (place.folder.exists() or place.done.exists()):
        check_target(place.target, fresh=fresh)
    while True:
        try:
            place.folder.mkdir(parents=True, exist_ok=True)
            lock = (place.folder / _LOCK).open("a+")
        except OSError as error:
            raise YoyoError(
                f"{place.target.parent}: nothing can be written here ({error.strerror}). Choose "
                "another folder."
            ) from None
        with lock:
            _lock(lock, place)
            if _is_of(lock, place.folder):  # else the run that held it has just cleared up
                try:
                    yield
                finally:
                    if _is_of(lock, place.folder):
                        _clear_if_empty(place)
                return


def make_ready(place: Workplace, *, fresh: bool) -> Journal:
    """The journal of what an earlier run did; what is of no use to it is removed.

    fresh: forget that run, and replace a merge of the target's name. Which one is noted: the next
    run may go on without `fresh`.

    Raises:
        YoyoError: the target is refused by `check_target`, or the journal cannot be read.
    """
    journal = Journal(place.journal) if fresh else Journal.read(place.journal)
    if not journal.done:  # with nothing done, `fresh` has to be said again
        journal.replaced = None
    check_target(place.target, fresh=fresh, replaced=journal.replaced)
    if fresh and _is_full(place.target):
        journal.replaced = place.target.stat().st_ino
    if not journal.done:  # nothing is known of the other files
        journal.begin(*journal.replacing)
        for path in (place.model.parent, place.adapted):
            _remove(path)
    place.done.unlink(missing_ok=True)
    mend_leftovers(place.model)
    place.model.mkdir(parents=True, exist_ok=True)
    return journal


def check_target(target: Path, *, fresh: bool = False, replaced: int | None = None) -> None:
    """Refuse a target that holds anything else than a merge that may be replaced.

    fresh: any merge may be. replaced: the one whose folder has this number may be.

    Raises:
        YoyoError: it is a file, or a folder that is not empty.
    """
    if target.is_symlink():
        raise YoyoError(f"{target}: this is a link. Give the folder that is meant itself.")
    if target in (Path.cwd(), *Path.cwd().parents):
        raise YoyoError(f"{target}: we are in this folder. Run this from outside of it (cd ..).")
    if target.exists() and not target.is_dir():
        raise YoyoError(f"{target}: expected a folder; got a file. Choose another name.")
    if target.is_mount():
        raise YoyoError(f"{target}: this is the root of a disk. Choose a folder on it.")
    if not _is_full(target):
        return
    is_merge = (target / MERGE_FILE).is_file()
    if is_merge and (fresh or target.stat().st_ino == replaced):
        return
    hint = "--fresh replaces it" if is_merge else f"and no merge: it has no {MERGE_FILE}"
    raise YoyoError(f"{target}: this folder exists and is not empty ({hint}). Choose another name.")


def put_in_place(place: Workplace, journal: Journal) -> None:
    """The model gets its name, in one step where the system can; what was needed to make it goes.

    Raises:
        YoyoError: something else came to be in the target meanwhile.
    """
    check_target(place.target, replaced=journal.replaced)
    journal.append(Reached(stage="placing", inode=place.model.stat().st_ino))
    try:
        if _is_full(place.target):
            move_into_place(place.model, place.target)
            if place.model.exists() and place.model.stat().st_ino != journal.replaced:
                move_into_place(place.model, place.target)  # another came between, and stays
        else:
            place.model.rename(place.target)  # over an empty folder, never over a full one
    except OSError as error:
        check_target(place.target, replaced=journal.replaced)
        raise YoyoError(
            f"{place.target}: the merge cannot get this name ({error.strerror}). Make room for it, "
            "then run the same command again."
        ) from None
    if place.target.stat().st_ino != journal.placed:
        check_target(place.target)
    sync(place.target.parent)
    clear_up(place)


def keep_only(folder: Path, names: Container[str]) -> None:
    """Remove what else is in a folder."""
    for path in folder.iterdir():
        if path.name not in names:
            _remove(path)


def placed_by(place: Workplace) -> Journal | None:
    """The journal of an earlier run that came to an end but for clearing up, if there was one."""
    journal = Journal.read(place.done if place.done.exists() else place.journal)
    if not _is_full(place.target) or journal.placed != place.target.stat().st_ino:
        return None
    return journal


def clear_up(place: Workplace) -> None:
    """Remove the workplace: its journal last, so that the next run knows whatever happens, and
    before that its lock, so that no other run clears up beside this one."""
    if place.journal.exists():
        place.journal.replace(place.done)
    for path in place.folder.iterdir():
        if path.name != _LOCK:
            _remove(path)
    _clear_if_empty(place)
    place.done.unlink(missing_ok=True)


def _clear_if_empty(place: Workplace) -> None:
    with suppress(OSError):  # another run may have begun in it
        if [path.name for path in place.folder.iterdir()] == [_LOCK]:
            (place.folder / _LOCK).unlink()
            place.folder.rmdir()


def _is_full(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _is_of(lock: TextIO, folder: Path) -> bool:
    """Whether a lock that was opened is the one that is in a folder now."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), (folder / _LOCK).stat())
    except OSError:
        return False


def _lock(lock: TextIO, place: Workplace) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        raise YoyoError(
            f"{place.target}: {lock.read().strip() or 'another process'} is merging into this "
            "folder. Wait for it, or choose another name."
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
