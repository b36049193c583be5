"""uvicorn's supervisor of several workers, which hears at once when one is gone.

It asks each twice a second over a pipe whether it lives, and kept the worker's end of the pipe open itself: of one that
was killed between the question and the answer, it awaited that answer for five seconds.
"""

from __future__ import annotations

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess


class Supervisor(Multiprocess):
    @property
    def failed_to_start(self) -> bool:
        """Whether `run` has ended because a worker could not start, which would be the same for every other."""
        return any(process.exitcode == STARTUP_FAILURE for process in self.processes)

    def init_processes(self) -> None:
        super().init_processes()
        self._leave_pipes_to_workers()

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        self._leave_pipes_to_workers()

    def _leave_pipes_to_workers(self) -> None:
        """Each has its own copy since it was started."""
        for process in self.processes:
            process.child_conn.close()
