"""uvicorn's supervisor of several workers, which hears at once when one is gone, and keeps the others.

uvicorn's own asks each twice a second over a pipe whether it lives, and keeps the worker's end of the pipe open itself:
of one that is killed between question and answer, it awaits the answer for five seconds. This one closes that end. And
where a worker cannot start, uvicorn's ends all the others. This one tries again later, while others serve: a bundle
that is being replaced is whole again soon.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
from time import monotonic

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

log = logging.getLogger(__name__)

_START_AGAIN_S = 5.0


class Supervisor(Multiprocess):
    _has_served = False  # any worker, ever
    _start_again_at: dict[int, float]  # by the index of a worker that could not start

    @property
    def failed_to_start(self) -> bool:
        """Whether `run` has ended because a worker could not start, which would be the same for every other."""
        return not self._has_served and any(process.exitcode == STARTUP_FAILURE for process in self.processes)

    def init_processes(self) -> None:
        self._start_again_at = {}
        super().init_processes()
        for process in self.processes:
            _leave_pipe_to(process)

    def keep_subprocess_alive(self) -> None:
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if not self._is_alive(process):
                self._replace(index, process)

    def _is_alive(self, process: Process) -> bool:
        if not self._has_served:
            self._has_served = process.is_ready(self.config.timeout_worker_healthcheck)
        return process.is_alive(self.config.timeout_worker_healthcheck)

    def _replace(self, index: int, process: Process) -> None:
        """At once, a worker that could not start after a pause; none where no worker has ever started."""
        process.kill()  # it may hang
        process.join()
        if process.exitcode == STARTUP_FAILURE:
            if not self._has_served:
                log.error("a worker failed to start: the service ends")
                self.should_exit.set()
                return
            if index not in self._start_again_at:
                self._start_again_at[index] = monotonic() + _START_AGAIN_S
                log.critical("worker %s failed to start; the others serve, and it is tried again", process.pid)
            if monotonic() < self._start_again_at[index]:
                return
        self._start_again_at.pop(index, None)
        log.info("worker %s is replaced", process.pid)
        self.processes[index] = Process(self.config, self.sockets)
        self.processes[index].start()
        _leave_pipe_to(self.processes[index])


def _leave_pipe_to(process: Process) -> None:
    """It has its own copy since it was started."""
    process.child_conn.close()


def end_with_supervisor() -> None:
    """In a worker's event loop: SIGTERM to itself when the supervisor is gone. Nobody else could end it, and its port
    stays taken."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.remove_reader(supervisor.sentinel)
            log.critical("the supervisor is gone: this worker ends")
            os.kill(os.getpid(), signal.SIGTERM)

        loop.add_reader(supervisor.sentinel, end)
