"""What generation measures of itself. In: where metrics are declared. Out: counters bound to one model."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from service.telemetry.declarations import Declarations


@dataclass(frozen=True, slots=True)
class SchedulerMetrics:
    """Of one model."""

    first_row: Histogram
    row: Histogram
    in_flight: Gauge
    slots: Gauge
    busy_slots: Gauge
    rows: Counter
    cancelled: Counter
    rejected: Counter


class GenerationMetrics:
    """Declares the metrics, once for each registry."""

    def __init__(self, metrics: Declarations) -> None:
        self._all = SchedulerMetrics(
            first_row=metrics.histogram(
                "generate_first_row_seconds", "From the request to the first row of all its samples.", "model"
            ),
            row=metrics.histogram("generate_row_seconds", "One call of the row graph, for all busy slots.", "model"),
            in_flight=metrics.gauge("generate_samples_in_flight", "Samples that wait or are being drawn.", "model"),
            slots=metrics.gauge("generate_slots", "Samples that one call of the row graph can advance.", "model"),
            busy_slots=metrics.gauge("generate_busy_slots", "Slots of them that the running call uses.", "model"),
            rows=metrics.counter("generate_rows", "Rows that were drawn, one for each sample and row.", "model"),
            cancelled=metrics.counter(
                "generate_cancelled_samples", "Samples given up: the client left or its deadline passed.", "model"
            ),
            rejected=metrics.counter(
                "generate_rejected_samples", "Samples refused because the queue was full.", "model"
            ),
        )

    def of(self, model: str) -> SchedulerMetrics:
        names = SchedulerMetrics.__dataclass_fields__
        return SchedulerMetrics(**{name: getattr(self._all, name).labels(model) for name in names})
