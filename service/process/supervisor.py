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
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socket
from time import monotonic, time

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.server import Server
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from service.process.ending import tell_why_it_ends
from service.telemetry.metric_files import forget_worker, take_place

log = logging.getLogger(__name__)

_START_AGAIN_S = 5.0
_MOST_FAILURES = 3  # of one place, while no worker has ever served
_DIES_S = 1.0  # its pipe is closed a moment before it is gone
_BEGINS_S = 60.0  # until it answers at all: Python imports first what it is made of
_ENDS_S = 8.0  # after drain and grace: the last spans may take five; the chart gives ten until all are killed
_untold_deaths = 0  # in the process of a worker


class _Server(Server):
    """uvicorn's, which says once that it serves."""

    def __init__(self, config: Config, says: Connection) -> None:
        super().__init__(config)
        self._says = says

    def run(self, sockets: list[socket] | None = None) -> None:
        # takes seconds, in which SIGTERM still ends the worker at once; later the server notes it and ends in its loop
        self.config.load_app()
        super().run(sockets)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._says.send_bytes(b"serves")


class Worker(Process):
    """One process that serves, as the supervisor sees it."""

    again_at: float | None = None  # once it is gone: when another takes its place, by `monotonic`
    _ends_by: float | None = None  # once it was asked to end

    def __init__(
        self,
        config: Config,
        sockets: list[socket],
        place: int = 0,
        failures: int = 0,
        deaths: int = 0,
        started: float | None = None,
        drain_s: float = 0.0,
    ) -> None:
        """`place`: among the workers, from 0; no two have the same at a time. `failures`: how many were in it that
        never served, in a row. `deaths`: how many died in it that no worker has counted yet. `started`: Unix time at
        which the supervisor was. `drain_s`: how long it serves on when it is asked to end."""
        self._hears, self._says = Pipe(duplex=False)
        super().__init__(config, sockets)
        self.place, self.failures, self.deaths, self.started = place, failures, deaths, started
        self._answers_by: float | None = None  # for the first time, once it was asked
        self._has_answered = False
        self._ends_within_s = drain_s + (config.timeout_graceful_shutdown or 0) + _ENDS_S

    @property
    def has_served(self) -> bool:
        """Also of one that is gone: what it said stays in the pipe, whose other end is open here too."""
        return self._hears.poll()

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server = _Server(self.config, self._says)
        return self._server

    def ping(self, timeout: float = 5) -> bool:
        """Whether it answers within `timeout`. One that never has is given time and not waited for: on a busy machine,
        or with a part of a CPU, it was killed before it could, and so was the next one."""
        if self._has_answered:
            return super().ping(timeout)
        try:
            if self._answers_by is None:
                self._answers_by = monotonic() + _BEGINS_S
                self.parent_conn.send(b"ping")
            if self.parent_conn.poll():
                self.parent_conn.recv()
                self._has_answered = True
        except (OSError, EOFError):  # it has just ended
            return False
        return self._has_answered or monotonic() < self._answers_by

    def target(self, sockets: list[socket] | None = None) -> None:
        """In the process of the worker, until it ends."""
        global _untold_deaths
        _untold_deaths = self.deaths
        take_place(self.place, self.started)
        tell_why_it_ends()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # at the end of a terminal the supervisor has it too
        super().target(sockets)

    def terminate(self) -> None:
        self._ends_by = monotonic() + self._ends_within_s
        super().terminate()

    def join(self) -> None:
        """Wait for the end that it was asked for. One that does not come to it, as after SIGSTOP, is killed: it was
        waited for without end."""
        self.process.join(None if self._ends_by is None else max(0.0, self._ends_by - monotonic()))
        if self.exitcode is None:
            log.error("worker %s %s at the end", self.pid, self.bury())

    def close_pipes(self) -> None:
        """Of one that is gone or could not be started; only the garbage collector would."""
        for end in (self._hears, self._says, self.parent_conn, self.child_conn):
            end.close()

    def bury(self) -> str:
        """Kill it if it hangs. Out: how it has ended, or that it has not: nothing ends a process while a disk does not
        answer it, and the supervision would wait with it, deaf to SIGTERM."""
        self.process.join(_DIES_S)
        hangs = self.exitcode is None
        self.kill()
        self.process.join(_DIES_S)
        status = self.exitcode
        if status is None:
            return "did not answer and cannot be killed"
        if hangs:
            return "did not answer and was killed"
        if status < 0:
            return f"was ended by signal {-status} ({signal.strsignal(-status)})"
        return f"ended with status {status}"


class Supervisor(Multiprocess):
    """Starts the workers and replaces those that end, until SIGTERM."""

    processes: list[Worker]  # type: ignore[assignment]  # nothing else is put into it here
    failed_to_start = False  # `run` has ended because no worker has ever served

    def __init__(self, config: Config, sockets: list[socket], metrics_folder: Path, drain_s: float) -> None:
        """`metrics_folder`: where the workers keep what they count. `drain_s`: how long they serve on after SIGTERM."""
        hangup = signal.getsignal(signal.SIGHUP)
        super().__init__(config, sockets)
        signal.signal(signal.SIGHUP, hangup)  # uvicorn's would start all workers anew, deaf to SIGTERM meanwhile
        self._metrics_folder, self._drain_s = metrics_folder, drain_s
        self._has_served = False  # any worker, ever
        self._started_at = time()

    def init_processes(self) -> None:
        for _ in range(self.processes_num):
            if not self._add():
                self._give_up()
                return

    def handle_ttin(self) -> None:
        self.processes_num += self._add()

    def handle_ttou(self) -> None:
        before = len(self.processes)
        super().handle_ttou()
        if len(self.processes) < before:
            forget_worker(self._metrics_folder, len(self.processes))

    def _add(self) -> bool:
        """Whether there was a process for one more worker."""
        worker = self._started(len(self.processes))
        if worker is not None:
            self.processes.append(worker)
        return worker is not None

    def keep_subprocess_alive(self) -> None:
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if worker.again_at is None:
                alive = worker.is_alive(self.config.timeout_worker_healthcheck)
                self._has_served = self._has_served or worker.has_served
                if not alive:
                    self._bury(worker)
            if worker.again_at is not None and monotonic() >= worker.again_at:
                self._replace(index, worker)

    def _replace(self, index: int, worker: Worker) -> None:
        """By another, or try again after a pause. That there is none counts as a failure: where the dead were all of
        it, the service neither served nor ended."""
        another = self._started(index, worker.failures, worker.deaths)
        if another is not None:
            self.processes[index] = another
            return
        worker.failures += 1
        worker.again_at = monotonic() + _START_AGAIN_S
        if not self._has_served and worker.failures >= _MOST_FAILURES:
            log.error("no worker has ever served, and none can be started; the service ends")
            self._give_up()

    def _give_up(self) -> None:
        self.failed_to_start = True
        self.should_exit.set()

    def _bury(self, worker: Worker) -> None:
        """Another takes the place of one that has served at once, of any other after a pause. None does where no worker
        has ever served and there is no reason to hope: then the service ends."""
        how, has_served = worker.bury(), worker.has_served
        worker.close_pipes()
        if worker.exitcode == -signal.SIGBUS:  # their files are mapped into memory
            log.error("a bus error comes of a full disk: the workers count in files in %s", self._metrics_folder)
        forget_worker(self._metrics_folder, worker.place)
        if has_served:
            log.error("worker %s %s; another takes its place", worker.pid, how)
            worker.failures, worker.deaths, worker.again_at = 0, 1, monotonic()
            return
        worker.failures += 1
        worker.deaths += 1
        if not self._has_served and (worker.exitcode == STARTUP_FAILURE or worker.failures >= _MOST_FAILURES):
            log.error("worker %s %s before it served, and no other ever has; the service ends", worker.pid, how)
            self._give_up()
            return
        log.error("worker %s %s before it served; another is tried in %g s", worker.pid, how, _START_AGAIN_S)
        worker.again_at = monotonic() + _START_AGAIN_S

    def _started(self, place: int, failures: int = 0, deaths: int = 0) -> Worker | None:
        """None where the system has no process, memory or descriptor for one. An exception would end the supervision:
        Python then waits for the workers that are left, deaf to SIGTERM."""
        try:
            worker = Worker(self.config, self.sockets, place, failures, deaths, self._started_at, self._drain_s)
            try:
                worker.start()
            except OSError:
                worker.close_pipes()
                raise
        except OSError as error:
            log.error("a worker cannot be started: %s", error.strerror)
            return None
        worker.child_conn.close()  # it has its own copy since it was started
        return worker


def untold_deaths() -> int:
    """How many workers died in the place of this process that none has counted yet."""
    return _untold_deaths


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
