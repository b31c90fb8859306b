"""Whether a file is what the journal says that was written."""

import zlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mergekit_yoyo.merging.journal import DonePart
from mergekit_yoyo.merging.worker import checksum


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
