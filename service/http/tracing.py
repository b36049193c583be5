"""OpenTelemetry spans, for whoever has a collector. In: requests, and the stages that they note. Out, over
OTLP/HTTP: one span a request, with its stages as children.

Imported only where VQSERVE_OTLP_ENDPOINT is set: OpenTelemetry's SDK is an extra (`otel`), and this layer costs time.
Sampling and resource attributes come from OpenTelemetry's own variables (OTEL_TRACES_SAMPLER, ...).
"""

from __future__ import annotations

import asyncio
import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.call import Stage, call_of, noted_stages
from service.http.middleware import Routes

_TRACE_HEADERS = (b"traceparent", b"tracestate")
_FLUSH_S = 5.0  # how long the end waits for a collector that does not answer; OpenTelemetry would wait for 30 s


def exporter_to(endpoint: str) -> SpanExporter:
    """`endpoint` is the address of the collector, as in OTEL_EXPORTER_OTLP_ENDPOINT: http://localhost:4318."""
    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")


class Trace:
    """The layer below `Observe`: the call exists, and the status of every answer passes through here.

    Spans wait in memory, a bounded number of them, and a thread sends them: no request waits for the collector.
    """

    def __init__(self, app: ASGIApp, endpoint: str, routes: Routes) -> None:
        self._app = app
        self._routes = routes
        resource = Resource.create({"service.name": "vqserve", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # Ctrl-C twice waits for nobody
        self._provider.add_span_processor(BatchSpanProcessor(exporter_to(endpoint)))
        self._tracer = self._provider.get_tracer("vqserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._flush_before_the_end(send))
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = self._start(scope)
        if not span.is_recording():  # not sampled
            await self._app(scope, receive, send)
            return
        call = call_of(scope)
        call.trace_id = f"{span.get_span_context().trace_id:032x}"
        status = 500

        async def send_watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        if call.stages is None:
            call.stages = []
            noted_stages.set(call.stages)
        try:
            await self._app(scope, receive, send_watched)
        finally:
            self._add_stages(span, call.stages)
            self._end(span, scope, status)

    def _start(self, scope: Scope) -> Span:
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE_HEADERS}
        return self._tracer.start_span(scope["method"], self._propagator.extract(headers), SpanKind.SERVER)

    def _add_stages(self, span: Span, stages: list[Stage]) -> None:
        context = set_span_in_context(span)
        epoch_s = time.time() - time.perf_counter()  # stages are measured on a clock that starts anywhere
        for name, started, ended in stages:
            child = self._tracer.start_span(name, context, start_time=round((epoch_s + started) * 1e9))
            child.end(round((epoch_s + ended) * 1e9))

    def _end(self, span: Span, scope: Scope, status: int) -> None:
        route, call = self._routes.of(scope), call_of(scope)
        span.update_name(f"{scope['method']} {route}")
        attributes = {"http.route": route, "url.path": scope["path"], "vqserve.request_id": call.request_id}
        span.set_attributes(attributes)
        span.set_attribute("http.request.method", scope["method"])
        span.set_attribute("http.response.status_code", status)
        failed = call.failed_status or status  # of an event stream that ended with an error after its 200
        if failed >= 500:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", str(failed))
        span.end()

    def _flush_before_the_end(self, send: Send) -> Send:
        """The process may be gone as soon as the server knows that the app has shut down. Nothing can end a request to
        the collector: the thread that waits for it is given up, and as a daemon it keeps no process from ending."""

        async def send_after_flush(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                flush = threading.Thread(target=self._provider.shutdown, name="flush-spans", daemon=True)
                flush.start()
                await asyncio.to_thread(flush.join, _FLUSH_S)
            await send(message)

        return send_after_flush
