"""Metrics. In: events of the service. Out: Prometheus' text format, the same whichever worker process answers.

`Metrics` declares every metric; docs/metrics.md is generated from them. Labels are bound once, outside the hot path.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import MultiProcessValue, MutexValue

from service.bundle.manifest import Manifest
from service.call import Stage, noted_stages
from service.telemetry.declarations import Declarations, Declared
from service.telemetry.generation_metrics import GenerationMetrics
from service.telemetry.metric_files import SHARED_METRICS, place, reserve, service_start
from service.telemetry.traffic import CodeTraffic, divergence_bits, perplexity

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNT_BUCKETS = tuple(float(1 << n) for n in range(11))
PIXEL_BUCKETS = tuple(float(1 << n) for n in range(8, 27, 2))
_RENDERING_SHARE, _RENDERING_BURST_S = 0.1, 0.5  # of the time, and what may be saved up of it
STAGES = ("read", "decode_picture", "queue", "run", "encode_answer")


class Ran(Protocol):
    """What one caller had in a run."""

    array: NDArray[Any]  # (n, ...)
    queued_at: float
    stages: list[Stage] | None  # of the request, where it is traced


_COMPUTED = (
    Declared("vqserve_configured_workers", "gauge", (), "Processes that are to serve: VQSERVE_WORKERS."),
    Declared(
        "vqserve_start_time_seconds",
        "gauge",
        (),
        "Unix time at which the service was started: of several workers their supervisor.",
    ),
    Declared(
        "vqserve_model_info", "gauge", ("model", "version", "provider", "family"), "1 for each model that is served."
    ),
    Declared(
        "vqserve_traffic_codebook_perplexity",
        "gauge",
        ("model",),
        "How many codes the recent traffic uses, as 2 to the entropy of its codes.",
    ),
    Declared(
        "vqserve_traffic_divergence",
        "gauge",
        ("model",),
        "Jensen-Shannon divergence, in bits, of the recent traffic's codes from the training set's: 0 to 1.",
    ),
)


class Metrics(Declarations):
    """One registry a process. With several workers prometheus_client keeps the values in files of a shared folder."""

    def __init__(self, workers: int = 1, models: int = 1) -> None:
        """`workers`: how many processes are to serve. `models`: how many each will, for which the files have room.

        Raises:
            OSError: mostly a CountsError: the shared folder takes no files.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for
        folder = os.environ.get(SHARED_METRICS)
        self.shared_folder = Path(folder) if folder else None
        # By default prometheus_client chooses at its import, and names files by process.
        values.ValueClass = MutexValue
        if self.shared_folder is not None:
            reserve(self.shared_folder, models)
            values.ValueClass = MultiProcessValue(place)  # type: ignore[no-untyped-call]
        super().__init__()
        self.models: dict[str, ModelMetrics] = {}
        self.configured_workers = workers
        self.started = service_start()
        self._declare_requests()
        self._declare_work()
        self._declare_faults()
        self.generation = GenerationMetrics(self)
        self.model_collector = _ModelCollector(self)
        self.registry.register(self.model_collector)
        self.declared += _COMPUTED
        self._page, self._credit_s, self._asked_at = b"", _RENDERING_BURST_S, 0.0

    def _declare_requests(self) -> None:
        self.requests = self.counter(
            "requests",
            "Answered requests; the status of a stream that ended with an error is that of the error.",
            "route",
            "status",
        )
        self.request_seconds = self.histogram(
            "request_duration_seconds", "From the request's headers to the last byte of the answer.", "route"
        )
        self.in_flight = self.gauge("requests_in_flight", "Requests inside the service, the one for /metrics included.")
        self.received = self.counter("received_bytes", "Bytes of request bodies that were read.")
        self.sent = self.counter("sent_bytes", "Bytes of answer bodies, without those to clients that had left.")
        self.refused = self.counter(
            "refused_requests", "Requests without a result, by the slug of the problem type.", "reason"
        )

    def _declare_work(self) -> None:
        self.stage_seconds = self.histogram(
            "stage_duration_seconds", f"One stage of a request: {', '.join(STAGES)}.", "model", "stage"
        )
        self.batch_pictures = self.histogram(
            "batch_pictures",
            "Pictures or code grids that ran together; more than VQSERVE_MAX_BATCH, of one request, count as one run.",
            "model",
            "stage",
            buckets=COUNT_BUCKETS,
        )
        self.picture_pixels = self.histogram(
            "picture_pixels", "Pixels of the pictures that were encoded.", "model", buckets=PIXEL_BUCKETS
        )
        self.queued = self.gauge("queued_pictures", "Pictures or code grids that wait for an engine.", "model")
        self.queued_work = self.gauge(
            "queued_work",
            "Files, containers, scores and other long work that waits for a thread: small, large or prior.",
            "size",
        )
        self.overloaded = self.gauge(
            "overloaded", "Queues that are kept short, because more is asked for some time than can be answered."
        )

    def _declare_faults(self) -> None:
        self.reloads = self.counter(
            "reloads", "Reloads of a bundle, by outcome: swapped or failed.", "model", "outcome"
        )
        self.engine_deaths = self.counter(
            "engine_deaths", "Models whose engine or sampler failed on known input.", "model"
        )
        self.workers = self.gauge("workers", "Processes that serve.")
        self.worker_deaths = self.counter(
            "worker_deaths", "Workers that have died, of several; each is counted when another serves in its place."
        )

    def open_model(self, manifest: Manifest, provider: str) -> ModelMetrics:
        """The metrics of one version of a model; they take the place of those of the version before. Where that was the
        same, its traffic is counted on."""
        served = self.models.get(manifest.name)
        if served is not None and served.manifest.version == manifest.version:
            return ModelMetrics(self, manifest, provider, served.traffic)
        codes = manifest.codes.codebook_size
        traffic = CodeTraffic(manifest.name, manifest.version, codes, self.shared_folder)
        return ModelMetrics(self, manifest, provider, traffic)

    def count_overload(self, begins: bool) -> None:
        self.overloaded.inc(1 if begins else -1)

    def render(self) -> bytes:
        """The page, or the last one where it has been asked for so often that it took `_RENDERING_SHARE` of the time:
        it takes milliseconds, and nobody needs a key to ask."""
        now = perf_counter()
        self._credit_s = min(_RENDERING_BURST_S, self._credit_s + (now - self._asked_at) * _RENDERING_SHARE)
        self._asked_at = now
        if self._credit_s > 0:
            self._page = self._render()
            self._credit_s -= perf_counter() - now
        return self._page

    def _render(self) -> bytes:
        if self.shared_folder is None:
            return generate_latest(self.registry)
        try:
            return self._render_all(self.shared_folder)
        except FileNotFoundError:  # of a worker that has just been found dead
            return self._render_all(self.shared_folder)

    def _render_all(self, folder: Path) -> bytes:
        """Of all the workers together."""
        registry = CollectorRegistry()
        registry.register(_CountedByAll(folder))
        registry.register(self.model_collector)
        return generate_latest(registry)


class ModelMetrics:
    """The bound labels of one version of one model, and the codes of its traffic."""

    def __init__(self, metrics: Metrics, manifest: Manifest, provider: str, traffic: CodeTraffic) -> None:
        name = manifest.name
        self.manifest = manifest
        self.provider = provider
        self.traffic = traffic
        self.picture_pixels = metrics.picture_pixels.labels(name)
        self.queued = metrics.queued.labels(name)
        self.count_overload = metrics.count_overload
        self._batch = {stage: metrics.batch_pictures.labels(name, stage) for stage in ("encode", "decode")}
        self._stages = {stage: metrics.stage_seconds.labels(name, stage) for stage in STAGES}
        metrics.engine_deaths.labels(name)  # 0 from the start: increase() does not see a series begin at 1
        for outcome in ("swapped", "failed"):
            metrics.reloads.labels(name, outcome)

    def observe_stage(self, stage: str, started: float, ended: float) -> None:
        """Both on the clock of time.perf_counter()."""
        self._stages[stage].observe(ended - started)
        if (noted := noted_stages.get()) is not None:
            noted.append((stage, started, ended))

    def observe_run(self, stage: str, items: Sequence[Ran], started: float, seconds: float) -> None:
        queue = self._stages["queue"]
        for item in items:
            queue.observe(started - item.queued_at)
            if item.stages is not None:
                item.stages += [("queue", item.queued_at, started), ("run", started, started + seconds)]
        self._stages["run"].observe(seconds)
        self._batch[stage].observe(sum(len(item.array) for item in items))


class _CountedByAll(Collector):
    """What all workers have counted. prometheus_client would look for their files by the folder's name as a pattern: in
    one with brackets, as `TMPDIR` may name it, it found none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Raises OSError where there is no folder."""
        files = [str(path) for path in self._folder.iterdir() if path.suffix == ".db"]
        found: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return found


class _ModelCollector(Collector):
    """What is computed when it is asked for: how many processes should serve, since when, which models run where, and
    what their traffic looks like."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = [GaugeMetricFamily(one.name, one.text, labels=one.labels) for one in _COMPUTED]
        workers, start, info, spread, drift = families
        workers.add_metric((), self._metrics.configured_workers)
        start.add_metric((), self._metrics.started)
        for name, model in self._metrics.models.items():
            manifest, counts = model.manifest, model.traffic.counts()
            info.add_metric((name, manifest.version, model.provider, manifest.family), 1)
            spread.add_metric((name,), perplexity(counts))
            drift.add_metric((name,), divergence_bits(counts, manifest.code_histogram))
        yield from families
