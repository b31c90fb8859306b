"""Where a merge is made before it is whole: a hidden folder beside its target, held by one run."""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.merging.journal import Journal, Reached
from mergekit_yoyo.merging.worker import sync_folder
from mergekit_yoyo.model.merge_yaml import MERGE_FILE
from mergekit_yoyo.staging import mend_leftovers


@dataclass(frozen=True)
class Workplace:
    """target: what the merge will be called. folder: everything until then."""

    target: Path
    folder: Path

    @property
    def model(self) -> Path:
        """The model to be; it has the target's name, which mergekit writes into the card."""
        return self.folder / self.target.name

    @property
    def journal(self) -> Path:
        """What the merge is, and which of its parts are done."""
        return self.folder / "journal.jsonl"


def workplace_of(target: Path) -> Workplace:
    """The hidden folder that belongs to a target."""
    target = Path(os.path.normpath(target.absolute()))
    return Workplace(target, target.parent / f".{target.name}.merging")


@contextmanager
def held(place: Workplace, *, fresh: bool) -> Iterator[None]:
    """Hold the workplace of a target for one run.

    fresh: clear what an earlier run left.

    Raises:
        YoyoError: another run holds it, the target is there already, or nothing can be written.
    """
    check_target(place.target, replaces=fresh)
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        lock = (place.folder / "lock").open("a+")
    except OSError as error:
        raise YoyoError(
            f"{place.target.parent}: nothing can be written here ({error.strerror}). Choose "
            "another folder."
        ) from None
    with lock:
        _lock(lock, place)
        if fresh:
            for path in (place.journal, place.model):
                _remove(path)
        mend_leftovers(place.model)
        place.model.mkdir(exist_ok=True)
        yield


def check_target(target: Path, *, replaces: bool = False) -> None:
    """Refuse a target that holds anything else than a merge that may be replaced.

    Raises:
        YoyoError: it is a file, or a folder that is not empty.
    """
    if target.is_symlink():
        raise YoyoError(f"{target}: this is a link. Give the folder that is meant itself.")
    if target in (Path.cwd(), *Path.cwd().parents):
        raise YoyoError(f"{target}: we are in this folder. Run this from outside of it (cd ..).")
    if target.exists() and not target.is_dir():
        raise YoyoError(f"{target}: expected a folder; got a file. Choose another name.")
    if not target.exists() or not any(target.iterdir()):
        return
    if replaces and (target / MERGE_FILE).is_file():
        return
    hint = "--fresh replaces it" if (target / MERGE_FILE).is_file() else "it is no merge"
    raise YoyoError(f"{target}: this folder exists and is not empty ({hint}). Choose another name.")


def put_in_place(place: Workplace, journal: Journal) -> None:
    """The model gets its name; what was needed to make it goes."""
    journal.append(Reached(stage="placing"))
    if place.target.exists():
        if any(place.target.iterdir()):
            place.target.rename(place.folder / "replaced")
        else:
            place.target.rmdir()
    place.model.rename(place.target)
    sync_folder(place.target.parent)
    _clear_up(place)


def was_placed(place: Workplace) -> bool:
    """Whether an earlier run came to an end but for clearing up, which is done now."""
    if not place.folder.is_dir() or place.model.exists() or not place.target.is_dir():
        return False
    if not any(place.target.iterdir()):
        return False
    emptied = not any(place.folder.iterdir())
    if not emptied and "placing" not in Journal.read(place.journal).stages:
        return False
    _clear_up(place)
    return True


def _clear_up(place: Workplace) -> None:
    """Remove the workplace, its journal last: whatever happens, the next run knows."""
    for path in place.folder.iterdir():
        if path != place.journal:
            _remove(path)
    place.journal.unlink(missing_ok=True)
    place.folder.rmdir()


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
