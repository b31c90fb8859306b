"""Whether a file is what the journal says that was written."""

import zlib
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mergekit_yoyo.merging.journal import DonePart, Journal
from mergekit_yoyo.merging.worker import checksum
from mergekit_yoyo.progress import Progress


def forget_damaged(
    folder: Path, journal: Journal, files: Collection[str], progress: Progress, step: str
) -> list[str]:
    """Forget those of `files`, parts that are done, that are not what the journal says; gives
    them."""
    if files:
        progress.begin(step, len(files), "parts")
    damaged = []
    for file in files:
        if not is_sound(folder / file, journal.done[file]):
            damaged.append(file)
            del journal.done[file]
        progress.advance()
    return damaged


def is_sound(file: Path, done: DonePart) -> bool:
    """Whether `file` holds the tensors of a part, to the bit."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            return names == set(done.checksum) and all(
                checksum(opened.get_tensor(name)) == done.checksum[name] for name in names
            )
    except (OSError, SafetensorError, zlib.error):
        return False
