"""What Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.batching import BatchRecord
from serving.models import ServedModel

__all__ = ["Metrics"]

# From a millisecond, which a small model takes, to the longest timeout worth waiting for.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._occupancy = _OccupancyCollector()
        self._registry.register(self._occupancy)
        self.requests = Counter(
            "cbn_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self.request_seconds = Histogram(
            "cbn_request_seconds", "From request to response.", ("route",), buckets=_SECONDS, registry=self._registry
        )
        self.in_flight = Gauge("cbn_requests_in_flight", "Requests being answered.", registry=self._registry)
        self.images = Counter("cbn_images", "Images classified.", ("model",), registry=self._registry)
        self.stage_seconds = Histogram(
            "cbn_stage_seconds",
            "Time of a classification by stage: decode, queue, inference.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_images = Histogram(
            "cbn_batch_images",
            "Images that ran together in one inference.",
            ("model",),
            buckets=_IMAGES,
            registry=self._registry,
        )
        self._model_info = Gauge(
            "cbn_model_info",
            "1 for every model that is served; the labels say what runs it.",
            (
                "model",
                "version",
                "architecture",
                "components",
                "runtime",
                "runtime_version",
                "kernel_path",
                "device",
                "threads",
            ),
            registry=self._registry,
        )

    def describe(self, models: Iterable[ServedModel]) -> None:
        """Publish which code answers for which model."""
        self._model_info.clear()
        self._occupancy.models = tuple(models)
        for model in self._occupancy.models:
            self._model_info.labels(
                model=model.name,
                version=model.version,
                architecture=model.description.architecture,
                components=model.description.components,
                runtime=model.info.runtime,
                runtime_version=model.info.version,
                kernel_path=model.info.kernel_path,
                device=model.info.device,
                threads=model.info.threads,
            ).set(1)

    def count_batch(self, model: str, record: BatchRecord) -> None:
        """A batch of the model of this name has run."""
        self._batch_images.labels(model=model).observe(record.images)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)


class _OccupancyCollector(Collector):
    """The Gaussians' present occupancy, read when Prometheus asks."""

    models: tuple[ServedModel, ...] = ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Three families; without samples while nothing is known."""
        labels = ("model", "version", "layer")
        images = GaugeMetricFamily("cbn_occupancy_images", "Images whose posteriors were looked at.", labels=labels[:2])
        occupancy = GaugeMetricFamily(
            "cbn_component_occupancy",
            "Share of a layer's pixels that a Gaussian claims, of the images of late.",
            labels=(*labels, "component"),
        )
        distance = GaugeMetricFamily(
            "cbn_occupancy_drift",
            "Total variation between a layer's occupancy of late and that of known images, from 0 to 1.",
            labels=labels,
        )
        for model in self.models:
            if not model.components:
                continue
            name = (model.name, model.version)
            images.add_metric(name, model.traffic.drift.images)
            for layer, state in model.traffic.drift.layers().items():
                for component, share in enumerate(state.occupancy.tolist()):
                    occupancy.add_metric((*name, layer, str(component)), share)
                if state.distance is not None:
                    distance.add_metric((*name, layer), state.distance)
        yield from (images, occupancy, distance)
