"""Several scrapes as one, read back by Prometheus's own parser."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.workers.merged_metrics import merge_metrics

AWKWARD = 'a "b" {c} \\ \n # HELP x \u2028 d'


def text(requests: int, *, with_keys: bool = False) -> str:
    registry = CollectorRegistry()
    Gauge("plain", "No labels.", registry=registry).set(requests)
    Counter("requests", "By path.", ("path",), registry=registry).labels(AWKWARD).inc(requests)
    Histogram("seconds", "How\nlong.", ("path",), buckets=(1.0,), registry=registry).labels("/").observe(requests)
    if with_keys:
        Gauge("keys", "Only of one.", registry=registry).set(3)
    return generate_latest(registry).decode()


def test_every_sample_is_there_with_its_worker_and_every_family_once() -> None:
    texts = {0: text(2), 1: text(5, with_keys=True), 12: text(0)}
    merged = merge_metrics(texts)
    names = [line.split(" ")[2] for line in merged.split("\n") if line.startswith("# HELP")]
    assert len(names) == len(set(names))
    families = list(text_string_to_metric_families(merged))
    found = {
        (sample.labels.pop("worker"), sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    expected = {
        (str(worker), sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for worker, one in texts.items()
        for family in text_string_to_metric_families(one)
        for sample in family.samples
    }
    assert found == expected
    assert {family.name: family.type for family in families}["seconds"] == "histogram"
    assert {family.documentation for family in families} >= {"How\nlong.", "Only of one."}
