"""Trace context: which `traceparent` counts, what the log says, and the spans that go to a collector."""

from __future__ import annotations

import gzip
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError
from starlette.testclient import TestClient

from service.http import tracing
from service.settings import Settings
from tests.conftest import PICTURES, Tiny, running
from tests.service.conftest import Generating
from tests.service.prior.test_generation_faults import EVENTS, slow_down
from tests.service.serving import serving
from tests.service.telemetry.test_partial_requests import DEADLINE_MS, ask

DIGIT = (PICTURES / "digit_7.png").read_bytes()
PNG = {"content-type": "image/png"}
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
HEAVY = ("opentelemetry.sdk", "opentelemetry.exporter")  # FastAPI itself brings the API
MakeClient = Callable[..., TestClient]


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (PARENT, TRACE_ID),
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-will-be-like", TRACE_ID),
        (f"00-{TRACE_ID}-{SPAN_ID}-01-more", None),
        (f"ff-{TRACE_ID}-{SPAN_ID}-01", None),
        (f"00-{'0' * 32}-{SPAN_ID}-01", None),
        (f"00-{TRACE_ID}-{'0' * 16}-01", None),
        (f"00-{TRACE_ID.upper()}-{SPAN_ID}-01", None),
        (f"00-{TRACE_ID}-{SPAN_ID}", None),
        ("", None),
    ],
)
def test_the_log_names_the_trace_of_a_valid_traceparent(
    make_client: MakeClient, caplog: pytest.LogCaptureFixture, traceparent: str, trace_id: str | None
) -> None:
    """The cases are those of the W3C recommendation, section 3.2."""
    client = make_client(access_log=True)
    with caplog.at_level("INFO", logger="service.http.middleware"):
        assert client.get("/models", headers={"traceparent": traceparent}).status_code == 200
    fields = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert fields[-1]["trace_id"] == trace_id


def test_the_log_has_the_beginning_of_a_long_path(make_client: MakeClient, caplog: pytest.LogCaptureFixture) -> None:
    """One request wrote up to 120 KB, and 250 of them over the whole log of a container."""
    client = make_client(access_log=True)
    with caplog.at_level("INFO", logger="service.http.middleware"):
        assert client.get("/" + "a" * 60_000).status_code == 404
    (logged,) = (record.fields for record in caplog.records if hasattr(record, "fields"))
    assert logged["path"] == "/" + "a" * 999


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "exporter_to", lambda endpoint: exporter)
    return exporter


class Unanswered(InMemorySpanExporter):
    """Of a collector that takes the connection and does not answer: a request to it ends when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.over.wait(20)
        return SpanExportResult.FAILURE


@pytest.fixture
def traced(tiny: Tiny) -> Settings:
    return Settings(**tiny.settings, otlp_endpoint="http://collector:4318")


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_is_a_span_with_its_stages_below(traced: Settings, exported: InMemorySpanExporter) -> None:
    with running(traced) as client:
        headers = {**PNG, "traceparent": PARENT, "x-request-id": "abc"}
        answer = client.post("/encode", content=DIGIT, headers=headers)
    assert answer.status_code == 200
    assert "server-timing" not in answer.headers  # nobody asked
    spans = by_name(exported)
    request = spans.pop("POST /encode")
    assert set(spans) == {"read", "decode_picture", "queue", "run", "encode_answer"}
    assert request.context is not None
    assert request.parent is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE_ID, SPAN_ID)
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["vqserve.request_id"] == "abc"
    for stage in spans.values():
        assert stage.parent is not None
        assert stage.parent.span_id == request.context.span_id
        times = (request.start_time, stage.start_time, stage.end_time, request.end_time)
        assert list(times) == sorted(times, key=int), stage.name  # type: ignore[arg-type]


def test_requests_that_share_a_run_have_their_own_spans(traced: Settings, exported: InMemorySpanExporter) -> None:
    with running(traced.model_copy(update={"inline_ms": 0})) as client:
        threads = [
            threading.Thread(target=lambda: client.post("/encode", content=DIGIT, headers=PNG)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    spans = exported.get_finished_spans()
    requests = {span.context.span_id for span in spans if span.name == "POST /encode" and span.context}
    parents = [span.parent.span_id for span in spans if span.name == "run" and span.parent]
    assert len(requests) == 8
    assert sorted(parents) == sorted(requests)


def test_a_failed_request_is_a_span_with_its_status(traced: Settings, exported: InMemorySpanExporter) -> None:
    with running(traced) as client:
        assert client.post("/encode", content=b"no picture", headers=PNG).status_code == 422
        client.app.state.service.draining = True  # type: ignore[attr-defined]
        assert client.get("/models").status_code == 503
    wrong, refused = (span for span in exported.get_finished_spans() if span.name in ("POST /encode", "GET /models"))
    assert wrong.attributes is not None
    assert wrong.attributes["http.response.status_code"] == 422
    assert refused.attributes is not None
    assert (wrong.status.is_ok, refused.status.is_ok) == (True, False)
    assert ("error.type" in wrong.attributes, refused.attributes["error.type"]) == (False, "503")


def test_a_stream_that_ends_with_an_error_is_a_span_with_one(
    generating: Generating, exported: InMemorySpanExporter
) -> None:
    """Its 200 was sent before: metrics and the log had a 504, the span none."""
    settings = Settings(**generating.settings, otlp_endpoint="http://collector:4318", request_deadline_ms=300)
    with running(settings) as client:
        slow_down(client.app, 0.1)  # of seven rows
        answer = client.post("/generate", json={}, headers=EVENTS)
    assert "event: error" in answer.text
    span = by_name(exported)["POST /generate"]
    assert span.attributes is not None
    assert (answer.status_code, span.attributes["http.response.status_code"]) == (200, 200)
    assert (span.status.is_ok, span.attributes["error.type"]) == (False, "504")


def test_a_slow_upload_is_a_child_of_its_span(traced: Settings, exported: InMemorySpanExporter) -> None:
    """Nothing in the trace of a 504 said where its time had gone."""
    with running(traced.model_copy(update={"request_deadline_ms": DEADLINE_MS})) as client:
        assert ask(client, "/encode", [b"a part"])[0] == 504
    spans = by_name(exported)
    assert set(spans) == {"read", "POST /encode"}
    assert spans["read"].start_time is not None and spans["read"].end_time is not None
    assert spans["read"].end_time - spans["read"].start_time > (DEADLINE_MS - 20) * 1e6


def test_a_trace_that_is_not_sampled_costs_no_span(
    traced: Settings, exported: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    with running(traced.model_copy(update={"access_log": True})) as client, caplog.at_level("INFO"):
        client.post("/encode", content=DIGIT, headers={**PNG, "traceparent": f"{PARENT[:-2]}00"})
    assert exported.get_finished_spans() == ()
    assert [r.fields["trace_id"] for r in caplog.records if hasattr(r, "fields")] == [TRACE_ID]


def test_without_the_setting_neither_sdk_nor_exporter_is_imported(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(HEAVY)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "service.http.tracing")
    with running(Settings(**tiny.settings)) as client:
        assert client.post("/encode", content=DIGIT, headers=PNG).status_code == 200
    assert not [name for name in sys.modules if name.startswith(HEAVY)]


def test_the_setting_needs_a_url_and_the_extra(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="must be a URL"):
        Settings(**tiny.settings, otlp_endpoint="localhost:4318")
    monkeypatch.setattr("service.setting_values.find_spec", lambda module: None)
    with pytest.raises(ValidationError, match=r"pip install '\.\[otel\]'"):
        Settings(**tiny.settings, otlp_endpoint="http://localhost:4318")


class _Collector(BaseHTTPRequestHandler):
    received: list[tuple[str, ExportTraceServiceRequest]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        return None


@pytest.fixture
def collector() -> Iterator[HTTPServer]:
    _Collector.received = []
    with HTTPServer(("127.0.0.1", 0), _Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_end_does_not_wait_long_for_a_collector_that_is_away(
    traced: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took 30 s, as long as a pod has: it was killed. And still 15 s where the collector took the connection."""
    exporter = Unanswered()
    monkeypatch.setattr(tracing, "exporter_to", lambda endpoint: exporter)
    monkeypatch.setattr(tracing, "_FLUSH_S", 0.2)
    with running(traced) as client:
        assert client.get("/models").status_code == 200
        ends = time.monotonic()
    assert time.monotonic() - ends < 5
    exporter.over.set()


def test_a_collector_gets_the_spans_before_the_process_ends(tiny: Tiny, collector: HTTPServer) -> None:
    """A real process and a real OTLP body; the request is so short before SIGTERM that only the flush can send it."""
    endpoint = f"http://127.0.0.1:{collector.server_port}"
    with serving(tiny.grey, VQSERVE_OTLP_ENDPOINT=endpoint, VQSERVE_DRAIN_S="0") as (_, address):
        assert httpx.post(f"{address}/encode", content=DIGIT, headers=PNG).status_code == 200
    assert {path for path, _ in _Collector.received} == {"/v1/traces"}
    names = [
        span.name
        for _, request in _Collector.received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {"POST /encode", "run", "GET /readyz"} <= set(names)
