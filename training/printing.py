"""How a command ends for somebody who may stop reading, as `| head` does, or press Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

INSTALL = "pip install '.[training]' in the repository"
READER_LEFT = 128 + signal.SIGPIPE  # the status of other programs then


def status_of(main: Callable[[], int]) -> int:
    """Run a command to its end, its output included; returns its status, that of the signal which ended it, or 1 where
    the extra `training` is not installed."""
    try:
        try:
            return main()
        finally:
            if sys.stdout is not None:  # it may be closed
                sys.stdout.flush()  # here, and not at the end of the process, which would be a traceback
    except ModuleNotFoundError as missing:
        print(f"error: {missing}: {INSTALL}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left in its buffer
        return READER_LEFT
