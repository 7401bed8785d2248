"""What Prometheus counts while requests are answered, and the registry that it scrapes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TypeVar, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from serving.batching import BatchRecord

__all__ = ["Metrics"]

T = TypeVar("T", bound=MetricWrapperBase)

# From a millisecond, which a small model takes, to the longest timeout worth waiting for.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one application, in a registry of its own.

    Labels are bounded: routes are those of the application, methods those of HTTP, models those that are served.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._children: dict[tuple[MetricWrapperBase, tuple[str, ...]], MetricWrapperBase] = {}
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Gauge("cbn_build_info", "1; the label is the version.", ("version",), registry=registry).labels(
            version("cbn-deploy")
        ).set(1)
        self._requests = Counter(
            "cbn_requests",
            "Requests answered. Status 0: none was sent.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._errors = Counter(
            "cbn_errors",
            "Requests answered with a status from 400 on, or not at all.",
            ("route", "reason"),
            registry=registry,
        )
        self._request_duration = Histogram(
            "cbn_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("cbn_requests_in_flight", "Requests being answered.", registry=registry)
        self._images = Counter("cbn_images", "Images classified.", ("model",), registry=registry)
        self._stage_duration = Histogram(
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

    def count_request(self, method: str, route: str, status: int, seconds: float, reason: str = "") -> None:
        """A request has ended; with a ``reason`` it has failed."""
        self._child(self._requests, method, route, str(status)).inc()
        self._child(self._request_duration, route).observe(seconds)
        if reason:
            self._child(self._errors, route, reason).inc()

    def count_images(self, model: str, images: int, seconds: Mapping[str, float]) -> None:
        """A request's images were classified; ``seconds``: stage -> the time that it took."""
        self._child(self._images, model).inc(images)
        for stage, taken in seconds.items():
            self._child(self._stage_duration, model, stage).observe(taken)

    def count_batch(self, model: str, record: BatchRecord) -> None:
        """A batch of the model of this name has run."""
        self._child(self._batch_images, model).observe(record.images)

    def _child(self, metric: T, *labels: str) -> T:
        """``metric.labels(*labels)``, which takes a lock and checks the labels every time."""
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return cast("T", child)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
