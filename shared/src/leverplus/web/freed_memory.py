"""Memory that was freed goes back to the system.

glibc keeps what a burst of requests leaves free in the arena of each thread that answered, so that a process of many threads
grows for hours without holding anything.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """All whole pages that are free, in some milliseconds; nothing where the C library has no malloc_trim."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
