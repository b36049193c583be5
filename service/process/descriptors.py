"""The limit of open files: every connection takes one, also an idle one. Beyond the limit the kernel closes new ones,
and no line says so.

In: how many a start needs. Out: the limit, as high as it may be.
"""

from __future__ import annotations

import resource
import sys

OF_A_START = 32  # of a process with a model


def raise_limit(fewest: int = OF_A_START) -> float:
    """To the hard one, which is returned. Where that is below `fewest` the process ends with a sentence: a start ended
    in a traceback, or was aborted, wherever it came to its last one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return float("inf")
    if most < fewest:
        sys.exit(f"cannot start: the limit of open files (ulimit -Hn) is {most}: raise it to {fewest} or far more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
