"""Memory that a request has freed goes back to the system.

In: nothing. Out: glibc's allocator with fixed thresholds. By default it raises them whenever a large block is freed:
one picture of 16 megapixels, and blocks of up to 32 MiB stay with the process for good. With strangers' pictures of
every size a process then grows for hours.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_* of malloc.h
_TRIM_BYTES, _MMAP_BYTES = 4 << 20, 1 << 20


def give_freed_memory_back() -> bool:
    """For this process, from now on; False where the C library has no `mallopt` that takes these (musl, macOS)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _TRIM_BYTES) and mallopt(_MMAP_THRESHOLD, _MMAP_BYTES))
