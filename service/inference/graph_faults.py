"""What keeps a graph from running, as a `BundleError`. In: what runs it. Out: whose fault it is.

At the start it is the bundle's, if neither memory, threads nor the device are named. A graph that has run before is
well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from service.bundle import Bundle, BundleError
from service.bundle.fields import GraphName
from service.inference.sessions import ORT_ERRORS, DeviceError

# ValueError is numpy's, of shapes that do not fit or that no memory could hold.
_FAULTS: tuple[type[Exception], ...] = (*ORT_ERRORS, ValueError, MemoryError)
# onnxruntime says it in words only: of its own arena, of the processor's memory, of CUDA's, and of its libraries'.
_NO_MEMORY = re.compile(r"bad_alloc|Failed to allocate|out of memory|ALLOC_FAILED")
_NO_THREAD = re.compile(r"pthread_create failed|can't start new thread")  # of a session's pool, and Python's
_BROKEN_DEVICE = re.compile(r"\b(CUDA|CUDNN|CUBLAS|CUFFT) (failure|error)")


class CannotRun(BundleError):
    """Neither memory nor threads nor the device are named as the reason."""


@contextmanager
def faults_of(bundle: Bundle, graph: GraphName | None = None) -> Iterator[None]:
    """Inside, `graph` is run, or memory taken for what the manifest says of it; None: any of them.

    Raises:
        CannotRun, BundleError: onnxruntime refuses a graph, no memory or thread is left for it, or the device fails;
            with the file's name, and the reason on one line. DeviceError: as it came.
    """
    where = f"{bundle.folder}: a graph" if graph is None else bundle.where(graph)
    try:
        yield
    except (BundleError, DeviceError):
        raise
    except _FAULTS as error:
        reason = _line(error)
        if isinstance(error, MemoryError) or _NO_MEMORY.search(reason):
            raise BundleError(f"{where} needs more memory than there is: {reason}") from error
        if _NO_THREAD.search(reason):
            raise BundleError(f"{where} cannot be run: {reason}: allow more threads (pids) or memory") from error
        if _BROKEN_DEVICE.search(reason):
            raise BundleError(f"{where} cannot be run, because the device fails: {reason}") from error
        raise CannotRun(f"{where} cannot be run: {reason}") from error


@contextmanager
def faults_at_start_of(bundle: Bundle) -> Iterator[None]:
    """Inside, the bundle is opened. Raises as `faults_of`, with what to do."""
    try:
        with faults_of(bundle):
            yield
    except CannotRun as error:
        raise BundleError(f"{error}: export it again") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
