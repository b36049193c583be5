"""Memory that a request has freed goes back to the system, and what the service is made of is not searched for garbage.

In: nothing. Out: glibc's allocator with fixed thresholds. By default it raises them whenever a large block is freed:
one picture of 16 megapixels, and blocks of up to 32 MiB stay with the process for good. With strangers' pictures of
every size a process then grows for hours. And Python's collector without the objects that are there for good.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_* of malloc.h
_TRIM_BYTES, _MMAP_BYTES = 4 << 20, 1 << 20


def give_freed_memory_back() -> bool:
    """For this process, from now on; False where the C library has no `mallopt` that takes these (musl, macOS)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _TRIM_BYTES) and mallopt(_MMAP_THRESHOLD, _MMAP_BYTES))


def spare_what_stays() -> None:
    """Call it when all is loaded: what has been made until now is left out of later collections.

    Otherwise a full one goes through some hundred thousand objects of modules and holds the event loop for 25 to 45 ms,
    under load about once a second. What is freed by its reference count still is. And what was freed between blocks
    that stay, as most of a model is that has been replaced, goes back to the system.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Replaced:
    """Models that have been replaced. Their parts refer to one another: only the collector, for which they may have
    been left out, frees them. It does `after_s` after the newest, when the last request of theirs has ended."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._timer: asyncio.TimerHandle | None = None

    def add(self) -> None:
        """There is one more."""
        if gc.get_freeze_count():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._free)

    def free_early(self) -> None:
        """Those that no request uses any more."""
        if self._timer is not None:
            spare_what_stays()

    def _free(self) -> None:
        self._timer = None
        spare_what_stays()
