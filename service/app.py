"""The application, folded from data: endpoints, middleware, and one lifespan that opens the models and closes them.

In: `Settings`. Out: a FastAPI app. Nothing is opened before the lifespan starts.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import STARTUP_FAILURE

from service import __version__
from service.http.api_keys import ApiKeys
from service.http.middleware import (
    ALWAYS_OPEN,
    START_FAULTS,
    Admission,
    Direct,
    Observe,
    Problems,
    Routes,
    http_problem,
)
from service.http.protocol import HEADS, REFUSAL, UNREAD
from service.http.refusal import EarlyRefusal, Heads
from service.http.unread import UnreadAnswers
from service.inference.overload import Door
from service.prior.generator import NAME as GENERATOR
from service.prior.generator import open_generator
from service.process.ending import ended_by_signals
from service.process.memory import give_freed_memory_back, spare_what_stays
from service.process.supervisor import end_with_supervisor, untold_deaths
from service.registry.model import OpenCompanion
from service.registry.models import Models
from service.routes import openinference, playground
from service.routes.decoding import DECODE
from service.routes.encoding import ENCODE
from service.routes.endpoints import Endpoint, Handler, openapi
from service.routes.generation import GENERATE, SEED_HEADER
from service.routes.operations import ENDPOINTS as OPERATIONS
from service.routes.operations import show_model
from service.routes.scoring import SCORE
from service.routes.service import Service
from service.setting_values import origins_of, parse_api_keys
from service.settings import Settings
from service.telemetry.metric_files import hold
from service.telemetry.metrics import Metrics
from service.threads import require_threads
from service.wire.inference_protocol import HEADER_LENGTH

log = logging.getLogger(__name__)

TITLE = "vqserve"
DESCRIPTION = "A learned image codec and generator (VQ-VAE + PixelCNN prior) behind an HTTP call."
ENDPOINTS: tuple[Endpoint, ...] = (ENCODE, DECODE, GENERATE, SCORE, *openinference.ENDPOINTS, *OPERATIONS)
# What pages of VQSERVE_CORS_ORIGINS may read, besides what every browser shows.
EXPOSED_HEADERS = ("X-Request-ID", "Retry-After", "Server-Timing", SEED_HEADER, HEADER_LENGTH)
_RESOLVERS = 4  # threads in which libuv resolves VQSERVE_HOST; where it cannot start them it aborts the process
COMPANIONS: Mapping[str, OpenCompanion] = {GENERATOR: open_generator}


def create_app(settings: Settings | None = None) -> FastAPI:
    """The app for these settings; by default those of the environment."""
    settings = settings or Settings()
    metrics = open_metrics(settings.workers, len(settings.bundles))
    door = door_of(settings, metrics)
    app = FastAPI(
        title=TITLE,
        version=__version__,
        description=DESCRIPTION,
        middleware=middleware(settings, metrics, door),
        lifespan=partial(lifespan, settings=settings, metrics=metrics, door=door),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
        },  # service/telemetry/metrics.py and service/http/tracing.py
        exception_handlers={HTTPException: _raise_problem},
    )
    app.router.routes[:0] = [Route(e.path, e.handler, methods=[e.method], name=e.name) for e in ENDPOINTS]
    app.router.routes += [*playground.routes(), Route("/docs", swagger_ui)]
    app.router.default = or_no_model(app.router.default)
    document = openapi(ENDPOINTS, TITLE, __version__, DESCRIPTION, ALWAYS_OPEN)
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app


async def swagger_ui(request: Request) -> Response:
    """FastAPI's page, beside the OpenAPI file: a proxy may add a path. Its icon is on a host that nobody has named."""
    return get_swagger_ui_html(openapi_url="openapi.json", title=TITLE, swagger_favicon_url="data:,")


def or_no_model(no_route: ASGIApp) -> ASGIApp:
    """As `no_route`, but GET of a name with a slash, or of none, asks for a model that there is not."""
    route = Route("/models/{name:path}", show_model)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        match, found = route.matches(scope)
        if match is not Match.FULL:  # by another method it is no route
            await no_route(scope, receive, send)
            return
        scope.update(found)
        await route.handle(scope, receive, send)

    return answer


def open_metrics(workers: int, models: int) -> Metrics:
    """Ends the process where one of several workers cannot count: its folder is full or gone."""
    try:
        metrics = Metrics(workers, models)
        if metrics.shared_folder is not None:
            hold(metrics.shared_folder)  # a worker may outlive the supervisor
    except OSError as error:
        log.critical("cannot start: %s", error)
        sys.exit(STARTUP_FAILURE)
    return metrics


def door_of(settings: Settings, metrics: Metrics) -> Door:
    adapts = settings.short_queue_in_overload
    return Door(settings.max_concurrent_requests, adapts=adapts, on_change=metrics.count_overload)


def middleware(settings: Settings, metrics: Metrics, door: Door) -> list[Middleware]:
    """From the outside in."""
    routes = Routes(routes_of(ENDPOINTS), {e.path for e in ENDPOINTS if "{" not in e.path})
    layers = [
        Middleware(Observe, metrics, settings.request_deadline_ms / 1e3, settings.access_log, routes),
        *_tracing(settings.otlp_endpoint, routes),
        *_cors(settings.cors_origins),
        Middleware(Problems, metrics, openinference.PREFIX),
        Middleware(Admission, door),
    ]
    if keys := parse_api_keys(settings.api_keys.get_secret_value()):
        layers.append(Middleware(ApiKeys, keys, playground.PATHS))
    layers.append(Middleware(Direct, {(e.method, e.path): e.handler for e in ENDPOINTS if "{" not in e.path}))
    return layers


def routes_of(endpoints: Sequence[Endpoint]) -> dict[Handler, str]:
    """handler -> path pattern, as metrics and spans name it; the first path of a handler wins."""
    return {endpoint.handler: endpoint.path for endpoint in reversed(endpoints)}


def _cors(origins: str) -> list[Middleware]:
    """Outside of `Problems`: a page must also be able to read why it was refused."""
    allowed = origins_of(origins)
    if not allowed:
        return []
    anything = ["*"]
    return [Middleware(CORSMiddleware, allowed, anything, anything, expose_headers=EXPOSED_HEADERS)]


def _tracing(endpoint: str, routes: Routes) -> list[Middleware]:
    if not endpoint:
        return []
    from service.http.tracing import Trace  # its SDK is an extra

    return [Middleware(Trace, endpoint, routes)]


@asynccontextmanager
async def lifespan(app: FastAPI, settings: Settings, metrics: Metrics, door: Door) -> AsyncIterator[dict[str, Any]]:
    give_freed_memory_back()
    logging.captureWarnings(True)  # every line of the log is JSON
    # Of metadata, which nothing here reads: one file can have sixty thousand tags, each with a warning of its own.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with ended_by_signals():
        service = open_service(settings, metrics)
    app.state.service, models = service, service.models
    door.open_to(models)
    models.start()
    if threading.current_thread() is threading.main_thread():  # else one of several apps of a process, as in tests
        drain_on_sigterm(service)
        if settings.workers > 1:
            end_with_supervisor()
            metrics.worker_deaths.inc(untold_deaths())
        spare_what_stays()
    _log_served(models)
    metrics.workers.set(1)
    try:
        yield {
            REFUSAL: early_refusal(settings, metrics, door, lambda: service.draining),
            HEADS: Heads(settings.head_timeout_s, metrics, settings.access_log),
            UNREAD: UnreadAnswers(settings.head_timeout_s),
        }
    finally:
        service.close()
        models.close("The service is shutting down.")


def _log_served(models: Models) -> None:
    """In a frame of its own: that of the lifespan would keep the last model until the end, whatever replaces it."""
    for model in models:
        log.info("serving %s %s on %s", model.manifest.name, model.manifest.version[:12], model.engine.provider)


def open_service(settings: Settings, metrics: Metrics) -> Service:
    try:
        service = Service(settings, Models(settings, metrics, COMPANIONS), metrics)
        if settings.workers == 1:  # of several the supervisor has resolved the address
            require_threads(_RESOLVERS)
        return service
    except START_FAULTS as error:  # on a line of its own, without a traceback
        log.critical("cannot start: %s", error)
        raise


def early_refusal(
    settings: Settings, metrics: Metrics, door: Door, draining: Callable[[], bool] = lambda: False
) -> EarlyRefusal | None:
    """None where a layer outside of `Admission` has something to add to a refusal.

    Below /v2 `Problems` has: a member of its own, which clients of that protocol read.
    """
    if settings.cors_origins or settings.access_log or settings.otlp_endpoint:
        return None
    labels = routes_of(ENDPOINTS)
    ours = [endpoint for endpoint in ENDPOINTS if not endpoint.path.startswith(openinference.PREFIX)]
    routes = {e.path: labels[e.handler] for e in ours if "{" not in e.path and e.path not in ALWAYS_OPEN}
    return EarlyRefusal(door, metrics, routes, draining)


def drain_on_sigterm(service: Service) -> None:
    """Say 503 on /readyz at once, and only `drain_s` later let the server close its socket and finish."""
    loop, stop = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    if not callable(stop):
        return

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        service.draining = True
        loop.call_soon_threadsafe(loop.call_later, service.settings.drain_s, stop, number, None)

    signal.signal(signal.SIGTERM, on_sigterm)


async def _raise_problem(request: Request, error: Any) -> NoReturn:
    raise http_problem(error)
