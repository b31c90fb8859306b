"""mergekit's plans made whole: what it would leave out of a merge is seen, and planned too."""

from mergekit_yoyo.planning.hook import (
    differing,
    install,
    is_switched_off,
    lost_in,
    notes_on,
    planning,
    refusal,
    watching,
)
from mergekit_yoyo.planning.law import Account
from mergekit_yoyo.planning.reading import (
    Reader,
    gathered_weights,
    merged_dtype,
    opened_reader,
    own_device,
    reader_of,
)

__all__ = [
    "Account",
    "Reader",
    "differing",
    "gathered_weights",
    "install",
    "is_switched_off",
    "lost_in",
    "merged_dtype",
    "notes_on",
    "opened_reader",
    "own_device",
    "planning",
    "reader_of",
    "refusal",
    "watching",
]
