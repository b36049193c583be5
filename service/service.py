"""What every handler works with: the settings, the models, the metrics, and a few threads for large pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar, cast

from starlette.requests import Request

from service.metrics import Metrics
from service.models import Models
from service.settings import Settings

T = TypeVar("T")


@dataclass
class Service:
    settings: Settings
    models: Models
    metrics: Metrics
    pool: ThreadPoolExecutor
    draining: bool = field(default=False)

    def why_not_ready(self) -> str | None:
        return "the service is shutting down" if self.draining else self.models.why_not_ready()

    def in_thread(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """For work that would hold up the event loop for longer than a few milliseconds."""
        return asyncio.get_running_loop().run_in_executor(self.pool, call)


def service_of(request: Request) -> Service:
    return cast(Service, request.app.state.service)
