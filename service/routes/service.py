"""What every handler works with: the settings, the models, the metrics, and a few threads for long work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from starlette.requests import Request

from service.call import Call
from service.errors import QueueFull
from service.registry.models import Models
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.threads import LARGE, PRIOR, SMALL, SMALL_PIXELS, Pool

T = TypeVar("T")

_THREADS = {SMALL: 1, LARGE: 2, PRIOR: 2}


class Service:
    def __init__(self, settings: Settings, models: Models, metrics: Metrics) -> None:
        self.settings = settings
        self.models = models
        self.metrics = metrics
        self.draining = False
        self.body_bytes = 0  # of all the requests inside
        self._pools = {
            name: Pool(
                name,
                threads,
                settings.max_queued_pictures,
                2 * settings.max_pixels_per_request,
                metrics.queued_work.labels(name),
            )
            for name, threads in _THREADS.items()
        }

    def why_not_ready(self) -> str | None:
        return "the service is shutting down" if self.draining else self.models.why_not_ready()

    def take_in(self, call: Call, size: int) -> None:
        """Count a part of a request's body; `let_go` takes it off again.

        Raises:
            QueueFull: others have bodies inside, and together they would be more than may be.
        """
        most = self.settings.max_total_body_bytes
        if self.body_bytes > call.body_bytes and self.body_bytes + size > most:
            text = f"The bodies of all requests are more than {most} bytes (VQSERVE_MAX_TOTAL_BODY_BYTES)."
            raise QueueFull.for_now(text)
        self.body_bytes += size
        call.body_bytes += size

    def let_go(self, call: Call) -> None:
        """The request has its answer."""
        self.body_bytes -= call.body_bytes
        call.body_bytes = 0

    def in_thread(
        self, call: Callable[[], T], pixels: int, *, prior: bool = False, late: bool = False
    ) -> asyncio.Future[T]:
        """`in_threads` with one call."""
        return self.in_threads([call], pixels, prior=prior, late=late)[0]

    def in_threads(
        self, calls: Sequence[Callable[[], T]], pixels: int, *, prior: bool = False, late: bool = False
    ) -> list[asyncio.Future[T]]:
        """For work that would hold up the event loop for longer than a few milliseconds; `pixels` are those of all the
        calls together, or as many as their bytes where no picture has been opened yet. `prior`: they ask the prior,
        code by code. See `Pool.submit` for `late`, for how to stop it, and for what is raised."""
        return self._pool(pixels, prior).submit(calls, pixels, late=late)

    def require_room(self, pixels: int, *, prior: bool = False) -> None:
        """For a call that will be late. Raises QueueFull where it would have to wait behind more than may."""
        self._pool(pixels, prior).require_room(1, pixels)

    def _pool(self, pixels: int, prior: bool) -> Pool:
        return self._pools[SMALL if pixels <= SMALL_PIXELS else PRIOR if prior else LARGE]

    def close(self) -> None:
        """Stop what runs in threads, and wait for none of it: the grace of whoever waited is over."""
        self.draining = True
        for pool in self._pools.values():
            pool.close()


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)
