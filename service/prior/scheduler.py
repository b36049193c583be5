"""Continuous batching of samples. In: jobs of one or more `Draw`s. Out: a future of each job's codes, and its rows.

Every step advances up to `max_batch` samples by one row. Which ones is decided anew before each step
(`service.prior.turns`): a new job advances at the next row, and a sample that has to pause keeps its place and goes on
later. A slot is free as soon as its sample is done or its job has left.

The steps run in a thread of their own, which lives while there is work; everything that both threads touch is behind
one lock, which is never held during a step.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Protocol

import numpy as np

from service.errors import NotReady, QueueFull
from service.prior.draws import Codes, Draw
from service.prior.turns import Job, OnRow, Sample, choose
from service.telemetry.generation_metrics import SchedulerMetrics

log = logging.getLogger(__name__)

_RATE_SMOOTHING = 0.1  # weight of the newest step in the measured row rate


class Sampler(Protocol):
    """What the scheduler needs of `service.prior.sampling.RowSampler`."""

    grid: tuple[int, int]
    max_batch: int

    def open(self, draw: Draw, batch: int) -> int: ...

    def close(self, place: int) -> None: ...

    def advance(self, places: Sequence[int]) -> Codes: ...

    def check(self) -> None:
        """Raises where the sampler cannot run known input."""


class Scheduler:
    """`submit` belongs to an event loop; so does whatever it calls back.

    `filled_beside_others`: how many slots a job of many samples may fill while others are inside, all without it. Where
    a row takes time in proportion to its samples, a full one would delay those who want a single sample.
    """

    def __init__(
        self,
        sampler: Sampler,
        max_samples: int,
        stall_s: float,
        metrics: SchedulerMetrics,
        on_death: Callable[[], None] = lambda: None,
        filled_beside_others: int | None = None,
    ) -> None:
        self._sampler = sampler
        self.slots = sampler.max_batch
        self._filled_beside_others = filled_beside_others or sampler.max_batch
        self._max_samples = max_samples
        self._stall_s = stall_s
        self._metrics = metrics
        self._on_death = on_death
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._driving = False
        self._closed: str | None = None
        self.samples_inside = 0
        self._rows_left = 0
        self._rows_per_s = 0.0
        self._busy_since: float | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sampler")
        self._executor.submit(int)  # starts the thread: later there may be none to be had

    def in_its_thread(self, call: Callable[[], None]) -> None:
        """Run `call` in the thread that draws, and wait for it; raises what it raises."""
        self._executor.submit(call).result()

    def submit(self, draws: Sequence[Draw], on_row: OnRow | None = None) -> asyncio.Future[Codes]:
        """Queue a job. Cancel the future to give it up: its slots are free before the next row.

        `on_row(i, codes)` is called once for each row, when all samples have it: codes int64 (n,w).

        Raises:
            QueueFull: too many samples are inside. NotReady: closed, or dead.
        """
        loop = asyncio.get_running_loop()
        codes = np.zeros((len(draws), *self._sampler.grid), np.int64)
        job = Job(loop, loop.create_future(), codes, on_row, perf_counter())
        job.unfinished = [Sample(job, index, draw) for index, draw in enumerate(draws)]
        with self._lock:
            self._admit(job)
        job.future.add_done_callback(lambda _: self._leave(job))
        return job.future

    def why_not_ready(self) -> str | None:
        since = self._busy_since
        if self._closed is None and since is not None and perf_counter() - since > self._stall_s:
            return f"a row takes longer than {self._stall_s} s"
        return self._closed

    def close(self, reason: str) -> None:
        """Answer every waiting caller with `NotReady` and take no more."""
        with self._lock:
            self._closed = reason
            self._fail_jobs(self._jobs, reason)
        self._executor.shutdown(wait=False)

    def _admit(self, job: Job) -> None:
        if self._closed is not None:
            raise NotReady.for_now(self._closed)
        inside = self.samples_inside
        if inside and inside + len(job.unfinished) > self._max_samples:
            self._metrics.rejected.inc(len(job.unfinished))
            raise QueueFull(
                f"{inside} samples are inside, with these they would be more than the {self._max_samples} that may "
                "(VQSERVE_MAX_QUEUED_SAMPLES).",
                {"Retry-After": str(self._retry_after_s())},
            )
        self._jobs.append(job)
        self.samples_inside += len(job.unfinished)
        self._rows_left += job.codes[..., 0].size
        self._metrics.in_flight.inc(len(job.unfinished))
        if not self._driving:
            self._driving = True
            self._executor.submit(self._drive)

    def _retry_after_s(self) -> int:
        """Seconds until all that is inside is drawn at the measured rate, from 1 to 60."""
        return max(1, min(60, math.ceil(self._rows_left / self._rows_per_s))) if self._rows_per_s else 1

    def _leave(self, job: Job) -> None:
        """The job's future is done. If it is not by its result, nobody waits any more."""
        with self._lock:
            if job.unfinished:
                self._metrics.cancelled.inc(len(job.unfinished))
                self._remove(job)

    def _remove(self, job: Job) -> None:
        self._jobs.remove(job)
        self.samples_inside -= len(job.unfinished)
        self._metrics.in_flight.dec(len(job.unfinished))
        for sample in job.unfinished:
            self._rows_left -= len(job.codes[0]) - sample.row
            self._release(sample)
        job.unfinished.clear()

    def _release(self, sample: Sample) -> None:
        if sample.place is not None:
            self._sampler.close(sample.place)
            sample.place = None

    # ---- in the sampler's thread

    def _drive(self) -> None:
        while True:
            batch: list[Sample] = []
            started = perf_counter()
            try:
                with self._lock:
                    batch = choose(self._jobs, self._sampler.max_batch, self._filled())
                    self._metrics.busy_slots.set(len(batch))
                    if not batch:
                        self._driving = False
                        return
                    self._busy_since = started
                    places = [s.place if s.place is not None else self._open(s, len(batch)) for s in batch]
                self._record(batch, self._sampler.advance(places), started)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must reach the callers, or they wait forever
                self._fail(batch, error)
            self._busy_since = None

    def _filled(self) -> int:
        """How many slots large jobs may fill."""
        return self._sampler.max_batch if len(self._jobs) <= 1 else self._filled_beside_others

    def _open(self, sample: Sample, batch: int) -> int:
        sample.place = place = self._sampler.open(sample.draw, batch)
        return place

    def _record(self, batch: Sequence[Sample], drawn: Codes, started: float) -> None:
        if (found := np.shape(drawn)) != (expected := (len(batch), self._sampler.grid[1])):
            raise ValueError(f"the sampler gave rows of shape {found}, not {expected}")
        seconds = perf_counter() - started
        self._metrics.row.observe(seconds)
        self._metrics.rows.inc(len(batch))
        rate = len(batch) / max(seconds, 1e-6)
        self._rows_per_s += (_RATE_SMOOTHING if self._rows_per_s else 1.0) * (rate - self._rows_per_s)
        with self._lock:
            done = [job for job in self._store(batch, drawn) if self._tell(job)]
            for loop in {job.loop for job in done}:  # one call wakes it once
                loop.call_soon_threadsafe(_resolve, [job for job in done if job.loop is loop])

    def _store(self, batch: Sequence[Sample], drawn: Codes) -> list[Job]:
        """Give each sample its row. Returns the jobs for which that may be news, each once."""
        news: dict[Job, None] = {}
        last, stored, finished = self._sampler.grid[0] - 1, 0, 0
        for sample, row in zip(batch, drawn, strict=True):
            if sample.place is None:  # its job has left meanwhile
                continue
            job, index = sample.job, sample.row
            job.codes[sample.index, index] = row
            sample.row = index + 1
            stored += 1
            if index == last:
                job.unfinished.remove(sample)
                self._release(sample)
                finished += 1
            if index == 0 or index == last or job.on_row is not None:
                news[job] = None
        self._rows_left -= stored
        self.samples_inside -= finished
        self._metrics.in_flight.dec(finished)
        return list(news)

    def _tell(self, job: Job) -> bool:
        """Tell of the rows that all samples of the job have now. Whether it is done, and has left."""
        rows = min([sample.row for sample in job.unfinished], default=len(job.codes[0]))
        if rows and not job.rows:
            self._metrics.first_row.observe(perf_counter() - job.submitted)
        if job.on_row is not None:
            for row in range(job.rows, rows):
                job.loop.call_soon_threadsafe(job.on_row, row, job.codes[:, row].copy())
        job.rows = rows
        if job.unfinished:
            return False
        self._jobs.remove(job)
        return True

    def _fail(self, batch: Sequence[Sample], error: Exception) -> None:
        """The jobs of the batch fail, and where the sampler cannot draw known input either, it is dead: all jobs."""
        log.error("the row sampler failed", exc_info=error)
        dead = not self._works()
        with self._lock:
            if dead and self._closed is None:
                self._closed = "The sampler has failed; it is being restarted. Try again."
            failed = {sample.job for sample in batch} or set(self._jobs)  # all, where none could be chosen
            jobs = [job for job in self._jobs if self._closed is not None or job in failed]
            self._fail_jobs(jobs, self._closed or "The sampler has failed on this batch; try again.")
        if dead and failed:
            failed.pop().loop.call_soon_threadsafe(self._on_death)

    def _works(self) -> bool:
        try:
            self._sampler.check()
        except Exception:
            log.critical("the row sampler is dead", exc_info=True)
            return False
        return True

    def _fail_jobs(self, jobs: Sequence[Job], reason: str) -> None:
        for job in list(jobs):
            self._remove(job)
            job.loop.call_soon_threadsafe(_reject, job, reason)


def _resolve(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_result(job.codes)


def _reject(job: Job, reason: str) -> None:
    if not job.future.done():
        job.future.set_exception(NotReady.for_now(reason))
