"""What Prometheus counts while requests are answered, and the registry that it scrapes."""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.registry import Collector

from serving.batching import BatchRecord

__all__ = ["Metrics"]

# From a millisecond, which a small model takes, to the longest timeout worth waiting for.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one application, in a registry of its own.

    Labels are bounded: routes are those of the application, methods those of HTTP, models those that are served.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Gauge("cbn_build_info", "1; the label is the version.", ("version",), registry=registry).labels(
            version("cbn-deploy")
        ).set(1)
        self.requests = Counter(
            "cbn_requests",
            "Requests answered. Status 0: none was sent.",
            ("method", "route", "status"),
            registry=registry,
        )
        self.errors = Counter(
            "cbn_errors",
            "Requests answered with a status from 400 on, or not at all.",
            ("route", "reason"),
            registry=registry,
        )
        self.request_duration = Histogram(
            "cbn_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("cbn_requests_in_flight", "Requests being answered.", registry=registry)
        self.images = Counter("cbn_images", "Images classified.", ("model",), registry=registry)
        self.stage_duration = Histogram(
            "cbn_stage_duration_seconds",
            "Time of an answered classification by stage: decode, queue, inference.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_images = Histogram(
            "cbn_batch_images",
            "Images that ran together in one inference.",
            ("model",),
            buckets=_IMAGES,
            registry=registry,
        )

    def register(self, collector: Collector) -> None:
        """Ask ``collector`` too at every scrape."""
        self._registry.register(collector)

    def count_batch(self, model: str, record: BatchRecord) -> None:
        """A batch of the model of this name has run."""
        self._batch_images.labels(model=model).observe(record.images)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
