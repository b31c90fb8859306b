"""Folders that are finished or not there: written beside their target, moved into place at the end.

An exception or Ctrl-C leaves the target as it was; nothing half-written bears its name. A folder is
replaced by exchanging it with the new one, in one step where the system has it (Linux, macOS), else
by two renames. A process that is killed (SIGKILL, power) leaves at most a hidden folder beside the
target, `.NAME.unfinished-...` or `.NAME.replaced-...`, which the next run on that target clears, or
moves back where the target is missing.
"""

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mergekit_yoyo.errors import YoyoError, explain_os_error
from mergekit_yoyo.outside import check_regular

_UNFINISHED_FILE = ".unfinished"
_UNFINISHED, _REPLACED = ".unfinished-", ".replaced-"  # between the target's name and six letters
_HERE, _LINUX_EXCHANGE, _MACOS_SWAP = -100, 2, 2  # AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP


@contextmanager
def staged_folder(target: Path, *, overwrite: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """An empty folder to write into, which becomes `target` when the `with` block ends well.

    The folder is a hidden sibling of `target` (same disk, so that it can be renamed). On any
    exception, Ctrl-C included, it is removed and `target` stays as it was.

    Args:
        target: the folder to make; a link to a folder stays a link, and its goal is replaced.
        overwrite: replace `target` if it exists; otherwise only a missing or empty one is accepted.
        needed_bytes: what will be written, checked against the free space first.

    Raises:
        YoyoError: `target` exists and `overwrite` is false, is no folder, the one we are in or one
            that cannot be renamed; the disk is full, or a file cannot be read or written; or an
            interrupt came when all was done but to delete the old folder.
    """
    target = target.resolve()
    mend_leftovers(target)
    if target.exists() and not target.is_dir():
        raise YoyoError(f"{target}: expected a folder; got a file. Choose another name.")
    if not overwrite and target.exists() and any(target.iterdir()):
        raise YoyoError(f"{target}: this folder exists and is not empty. Choose another name.")
    if target in (Path.cwd(), *Path.cwd().parents):
        raise YoyoError(
            f"{target}: this folder is replaced as a whole, so that a shell in it would be left in "
            "the old one. Run this from outside of it (cd ..)."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_disk_space(target.parent, needed_bytes)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}{_UNFINISHED}", dir=target.parent))
    except OSError as error:
        raise YoyoError(
            f"{target.parent}: nothing can be written here ({error.strerror}). "
            "Choose another folder."
        ) from None
    held = _hold(staging)
    in_place = False
    try:
        # mkdtemp makes private folders; a model folder has the usual permissions of its place.
        staging.chmod((target if target.exists() else target.parent).stat().st_mode & 0o777)
        yield staging
        sync_tree(staging)
        try:
            move_into_place(staging, target)
            in_place = True
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EBUSY):
                raise
            raise YoyoError(
                f"{target}: this folder cannot be replaced ({error.strerror}): it seems to be the "
                "root of a disk or in use. Choose another name."
            ) from None
    except OSError as error:
        if is_full_disk(error):
            raise YoyoError(
                f"{target}: the disk filled up while it was written. Free some space."
            ) from None
        raise YoyoError(f"{target}: not written. {explain_os_error(error)}") from None
    finally:
        try:
            shutil.rmtree(staging, ignore_errors=True)
        except KeyboardInterrupt:
            if not in_place:
                raise
            raise YoyoError(
                f"{target}: written and in place. The interrupt came while the old folder was "
                "deleted; the next run on this one clears what is left of it."
            ) from None
        finally:
            if held is not None:
                os.close(held)


def sync_tree(folder: Path) -> None:
    """Make all in a folder durable: what it replaces is removed after that."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mend_leftovers(target: Path) -> None:
    """Clear what a killed run left beside `target`; move it back where the target is missing.

    A folder that another process is still writing is left alone.
    """
    for kind in (_REPLACED, _UNFINISHED):
        for left in target.parent.glob(f".{glob.escape(target.name)}{kind}*"):
            held = _hold(left)
            if held is None:
                continue
            with suppress(OSError):
                if kind == _REPLACED and not target.exists():
                    left.rename(target)
                else:
                    shutil.rmtree(left)
            os.close(held)


def _hold(folder: Path) -> int | None:
    """A lock on a folder until it is closed or the process ends; None if another holds it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def check_disk_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start what the disk of `folder` cannot hold.

    Raises:
        YoyoError: fewer than `needed_bytes` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise YoyoError(
            f"{folder}: {format_bytes(needed_bytes)} are needed here; {format_bytes(free)} are "
            "free. Free some space or choose a folder on another disk."
        )


def is_full_disk(error: BaseException) -> bool:
    """Whether that is what an error says, be it the system's or a library's."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return os.strerror(errno.ENOSPC) in str(error)


def format_bytes(count: int) -> str:
    """`count` bytes for a person, in the decimal units of disks and of the Hub: `4.9 GB`."""
    value, units = float(count), ["B", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def move_into_place(staging: Path, target: Path) -> None:
    """Give a folder the name of another, which afterwards lies, if it was there, where that did."""
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        _replace_by_renaming(staging, target)
    # the old folder, which goes with the staging one, is in the place of that


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the disk cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(one), os.fsencode(other))
    if hasattr(library, "renameat2"):  # Linux
        failed = library.renameat2(_HERE, names[0], _HERE, names[1], _LINUX_EXCHANGE)
    elif hasattr(library, "renamex_np"):  # macOS
        failed = library.renamex_np(*names, _MACOS_SWAP)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number))


def _replace_by_renaming(staging: Path, target: Path) -> None:
    # A folder that is not empty cannot be renamed over: step aside, and back if the move fails.
    aside = staging.with_name(f".{target.name}{_REPLACED}{staging.name[-6:]}")
    try:
        target.rename(aside)
        staging.rename(target)
    finally:  # also if Ctrl-C comes between any two of these lines
        if aside.exists():
            if not target.exists():
                aside.rename(target)
            elif not staging.exists():
                shutil.rmtree(aside, ignore_errors=True)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all of `files` or none: each beside its place, then all renamed into place.

    Args:
        files: content by path; a missing folder is made, not its parents.

    Raises:
        YoyoError: one of them cannot be written, or its name is that of a folder, pipe or device.
    """
    unfinished = {path: path.with_name(f".{path.name}{_UNFINISHED_FILE}") for path in files}
    path = Path()
    try:
        for path in files:
            check_regular(path)
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            unfinished[path].write_bytes(content)
        for path, beside in list(unfinished.items()):
            beside.replace(path)
            del unfinished[path]
    except OSError as error:
        raise YoyoError(f"{path}: cannot be written ({error.strerror}).") from None
    finally:
        for beside in unfinished.values():
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def clear_unfinished_files(folder: Path) -> None:
    """Remove what a process that was killed within `write_files` left in a folder of ours."""
    for left in folder.glob(f".*{_UNFINISHED_FILE}"):
        left.unlink(missing_ok=True)
