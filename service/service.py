"""What every handler works with: the settings, the models, the metrics, and a few threads for large pictures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, cast

from starlette.requests import Request

from service.errors import NotReady
from service.metrics import Metrics
from service.models import Models
from service.settings import Settings
from service.stopping import Stopped, stoppable

T = TypeVar("T")


@dataclass
class Service:
    settings: Settings
    models: Models
    metrics: Metrics
    pool: ThreadPoolExecutor
    draining: bool = field(default=False)
    _stops: set[threading.Event] = field(default_factory=set)  # one for each call that has not ended

    def why_not_ready(self) -> str | None:
        return "the service is shutting down" if self.draining else self.models.why_not_ready()

    def in_thread(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """For work that would hold up the event loop for longer than a few milliseconds. Cancel the future to stop it:
        its thread is free at the work's next `check_stop`."""
        stop = threading.Event()
        future = asyncio.get_running_loop().run_in_executor(self.pool, _run, call, stop)
        self._stops.add(stop)
        future.add_done_callback(lambda _: self._give_up(stop))
        return future

    def close(self) -> None:
        """Stop what runs in threads, and wait for none of it: the grace of whoever waited is over."""
        self.draining = True
        for stop in self._stops:
            stop.set()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _give_up(self, stop: threading.Event) -> None:
        stop.set()
        self._stops.discard(stop)


def _run(call: Callable[[], T], stop: threading.Event) -> T:
    try:
        return stoppable(call, stop)()
    except Stopped as stopped:
        raise NotReady("The service is shutting down; ask another instance.") from stopped


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)
