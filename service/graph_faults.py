"""What keeps a graph from running at the start is a fault of its bundle. In: what runs it. Out: a `BundleError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.bundle import Bundle, BundleError, GraphName
from service.sessions import ORT_ERRORS, DeviceError

# ValueError is numpy's, of shapes that do not fit or that no memory could hold.
_FAULTS: tuple[type[Exception], ...] = (*ORT_ERRORS, ValueError)


@contextmanager
def faults_of(bundle: Bundle, graph: GraphName | None = None) -> Iterator[None]:
    """Inside, `graph` is run, or memory taken for what the manifest says of it; None: any of them.

    Raises:
        BundleError: onnxruntime refuses a graph, or there is no memory for it; with the file's name, and the reason on
            one line. DeviceError: as it came.
    """
    where = f"{bundle.folder}: a graph" if graph is None else bundle.where(graph)
    try:
        yield
    except (BundleError, DeviceError):
        raise
    except MemoryError as error:
        raise BundleError(f"{where} needs more memory than there is: {_line(error)}") from error
    except _FAULTS as error:
        raise BundleError(f"{where} cannot be run: {_line(error)}: export it again") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
