"""What Prometheus sees of the server's present state: read when it asks, so it cannot be out of date."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.logs import suppressed_records
from serving.models.state import State
from serving.services import Services

__all__ = ["StateCollector"]

_MODEL_INFO = (
    "model",
    "version",
    "architecture",
    "components",
    "runtime",
    "runtime_version",
    "kernel_path",
    "device",
    "threads",
)


class StateCollector(Collector):
    """Readiness, models, queues, keys and drift of a running server."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """The families; those about keys only where there are keys."""
        services = self._services
        yield _gauge(
            "cbn_ready", "1: requests will be answered; 0: not, /v2/health/ready says why.", not services.not_ready()
        )
        yield _gauge(
            "cbn_connections_limit",
            "Connections that may be open (--max-connections).",
            services.settings.max_connections,
        )
        if services.connections is not None:
            yield _gauge("cbn_connections", "Open connections.", services.connections())
        peers = services.peers
        yield _gauge("cbn_workers", "Processes that share the port (--workers).", peers.count if peers else 1)
        restarts = CounterMetricFamily("cbn_worker_restarts", "How often this process was replaced after it had ended.")
        restarts.add_metric((), peers.restarts if peers else 0)
        yield restarts
        suppressed = CounterMetricFamily(
            "cbn_log_records_suppressed", "Warnings and errors not logged because there were too many of their kind."
        )
        suppressed.add_metric((), suppressed_records())
        yield suppressed
        yield from self._keys()
        yield from self._queues()
        yield from self._models()
        yield from self._occupancy()

    def _keys(self) -> Iterator[Metric]:
        keys = self._services.keys
        if keys is None:
            return
        yield _gauge("cbn_api_keys", "Keys that open the server.", len(keys))
        reloads = CounterMetricFamily(
            "cbn_api_key_reloads", "Changes of the key file, by outcome.", labels=("outcome",)
        )
        for outcome, count in keys.reloads.items():
            reloads.add_metric((outcome,), count)
        yield reloads

    def _queues(self) -> Iterator[Metric]:
        services = self._services
        depth = GaugeMetricFamily("cbn_queue_depth", "Requests that wait for inference.", labels=("model",))
        admitted = GaugeMetricFamily(
            "cbn_requests_admitted", "Requests of a model being read, decoded, queued or run.", labels=("model",)
        )
        waiting: dict[str, int] = {}
        for model in services.registry:
            waiting[model.name] = waiting.get(model.name, 0) + model.batcher.waiting
        for name, requests in waiting.items():
            depth.add_metric((name,), requests)
            admitted.add_metric((name,), services.admission.admitted(name))
        yield depth
        yield admitted
        yield _gauge(
            "cbn_requests_admitted_limit",
            "Requests of a model in progress or waiting (--max-queue).",
            services.settings.max_queue,
        )

    def _models(self) -> Iterator[Metric]:
        registry = self._services.registry
        info = GaugeMetricFamily(
            "cbn_model_info", "1 for every version that answers; the labels say what runs it.", labels=_MODEL_INFO
        )
        for model in registry:
            runs, says = model.info, model.description
            info.add_metric(
                (
                    model.name,
                    model.version,
                    says.architecture,
                    str(says.components),
                    runs.runtime,
                    runs.version,
                    runs.kernel_path,
                    runs.device,
                    str(runs.threads),
                ),
                1,
            )
        yield info
        state = GaugeMetricFamily(
            "cbn_model_state",
            "1 for the state that a version is in, 0 for the others.",
            labels=("model", "version", "state"),
        )
        for found in registry.index():
            for name in get_args(State):
                state.add_metric((found.name, found.version, name.lower()), found.state == name)
        yield state
        loads = CounterMetricFamily(
            "cbn_model_loads", "Model files loaded, or refused, since the start.", labels=("model", "outcome")
        )
        for (name, outcome), count in registry.loads().items():
            loads.add_metric((name, outcome), count)
        yield loads

    def _occupancy(self) -> Iterator[Metric]:
        labels = ("model", "version", "layer")
        images = CounterMetricFamily(
            "cbn_occupancy_images", "Images whose posteriors were looked at.", labels=labels[:2]
        )
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
        for model in self._services.registry:
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


def _gauge(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, says, value=float(value))
