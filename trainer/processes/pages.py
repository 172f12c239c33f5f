"""Large blocks of memory that go back to the system as soon as they are let go of."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LEAST = 1 << 16  # bytes of a block that is worth pages of its own
# Where glibc's own thresholds end once a program has let go of large blocks.
_USUAL_MMAP, _USUAL_TRIM = 32 << 20, 64 << 20


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Inside, a tensor on the CPU has pages of its own (with glibc; elsewhere nothing changes).

    Tensors that are gathered, copied and let go of one after the other leave holes in the heap. Whatever small comes next takes the
    beginning of a hole, and the next tensor, as large as the last, no longer fits: on the CPU two ranks took 3 to 15 times the largest
    tensor beside what they kept, and once with this (docs/decisions/0117).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _LEAST)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _USUAL_MMAP)
        libc.mallopt(_M_TRIM_THRESHOLD, _USUAL_TRIM)
