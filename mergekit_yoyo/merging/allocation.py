"""How this process holds memory for tensors that come and go by the thousand."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1


def reuse_freed_memory() -> bool:
    """Let large blocks that are freed be used again, where the C library is glibc.

    By itself it gives each back to the system at once, which then clears every page of the next:
    half of the time of a merge by `linear`. What a process held at most, it keeps.

    Returns:
        Whether it could be done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
