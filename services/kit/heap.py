"""Memory for bodies and images is used again, not given back and asked for anew: each of its pages would cost a fault."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST_KEPT = 32 << 20  # bytes of one block; glibc takes no more
_MOST_KEPT = 256 << 20  # bytes that are free at the end of the heap


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, as far as it is not more than 256 MiB at a time. Elsewhere it does nothing.

    By itself glibc maps a large block afresh each time: a body of eight raw 512x512 images is 1,536 pages.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library has none; Windows has no library of that name
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
    mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
