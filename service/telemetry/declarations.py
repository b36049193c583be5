"""Declaring metrics. In: name, text, labels. Out: prometheus_client's metric, and what docs/metrics.md says of it."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS_BUCKETS = tuple(float(f"{1e-5 * 1.5**n:.4g}") for n in range(1, 36))  # 15 us to 14.6 s


@dataclass(frozen=True)
class Declared:
    """One metric, as docs/metrics.md shows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    buckets: tuple[float, ...] = ()


class Declarations:
    """A registry, and all that was declared in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.declared: list[Declared] = []

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        self.declared.append(Declared(f"vqserve_{name}_total", "counter", labels, text))
        return Counter(f"vqserve_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        self.declared.append(Declared(f"vqserve_{name}", "gauge", labels, text))
        return Gauge(f"vqserve_{name}", text, labels, registry=self.registry, multiprocess_mode="livesum")

    def histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS_BUCKETS) -> Histogram:
        self.declared.append(Declared(f"vqserve_{name}", "histogram", labels, text, buckets))
        return Histogram(f"vqserve_{name}", text, labels, registry=self.registry, buckets=buckets)
