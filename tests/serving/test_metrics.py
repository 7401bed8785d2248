"""Every metric: well formed by Prometheus's rules, documented, and the only ones that alerts speak of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from serving.app import create_app
from serving.settings import load_settings
from tests.onnx_models import colour_model, describe, write_colour_model
from tests.serving.files import RED
from tests.serving.in_process import InProcess

ROOT = Path(__file__).parents[2]
KEY = {"X-API-Key": "the-key"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """An application after answers, errors and enough images for drift to have an opinion."""
    folder = tmp_path_factory.mktemp("metrics")
    model = colour_model(description=describe(occupancy={"stem": (0.2, 0.3, 0.5)}), with_posterior=True)
    path = write_colour_model(folder / "colours.onnx", model)
    (folder / "keys").write_text("the-key\n")
    settings = load_settings(models=[str(path)], threads=1, api_key_file=folder / "keys", watch_interval=0)
    app = create_app(settings)
    app.state.services.connections = lambda: 1  # the test client has none; the real listener's count is tested below
    client = InProcess(app)
    for _ in range(400):
        client.post("/v1/classify", files=[("image", RED)] * 8, headers=KEY)
        if app.state.services.registry.get(None).traffic.drift.images >= 32:
            break
    client.post("/v1/classify", content=b"no image", headers={**KEY, "Content-Type": "image/png"})
    client.get("/v1/models")
    client.get("/no/such/path")
    yield client
    client.close()


@pytest.fixture(scope="module")
def families(client: InProcess) -> dict[str, Metric]:
    text = client.get("/metrics", headers=KEY).text
    found = list(text_string_to_metric_families(text))
    assert len({family.name for family in found}) == len(found)
    found = [family for family in found if not family.name.endswith("_created")]  # cbn-serve turns these off
    return {family.name + ("_total" if family.type == "counter" else ""): family for family in found}


def test_prometheus_lint_has_nothing_to_say(families: dict[str, Metric]) -> None:
    """The rules of ``promtool check metrics``."""
    for name, family in families.items():
        assert family.documentation, name
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), name
        assert family.type in SUFFIXES, name
        assert (family.type == "counter") == name.endswith("_total"), name
        if family.type != "histogram":
            assert not name.endswith(("_bucket", "_count", "_sum")), name
        words = set(name.split("_"))
        not_base = {"ms", "milliseconds", "microseconds", "minutes", "hours", "kb", "mb", "gb", "kilobytes", "percent"}
        assert not words & not_base, name
        assert not words & {"counter", "gauge", "histogram", "summary"}, name
        for sample in family.samples:
            assert sample.name.removeprefix(family.name) in SUFFIXES[family.type], sample.name
            assert not {label for label in sample.labels if label in ("le", "quantile")} or family.type == "histogram"


def test_errors_are_counted_by_reason(families: dict[str, Metric]) -> None:
    found = {
        (s.labels["route"], s.labels["reason"]): s.value
        for s in families["cbn_errors_total"].samples
        if s.name.endswith("total")
    }
    assert found == {
        ("/v1/classify", "unsupported_image"): 1,
        ("/v1/models", "no_key"): 1,
        ("unmatched", "not_found"): 1,
    }


def test_the_state_of_models_and_keys(families: dict[str, Metric]) -> None:
    states = {s.labels["state"]: s.value for s in families["cbn_model_state"].samples}
    assert states == {"ready": 1, "loading": 0, "unavailable": 0, "unloading": 0}
    loads = {s.labels["outcome"]: s.value for s in families["cbn_model_loads_total"].samples}
    assert loads == {"success": 1, "failure": 0}
    for name, expected in {
        "cbn_ready": 1,
        "cbn_api_keys": 1,
        "cbn_queue_depth": 0,
        "cbn_requests_admitted": 0,
        "cbn_requests_admitted_limit": 64,
    }.items():
        (sample,) = families[name].samples
        assert sample.value == expected, name
    (drift,) = families["cbn_occupancy_drift"].samples
    assert 0 < drift.value <= 1


def test_labels_do_not_grow_with_what_clients_invent(client: InProcess) -> None:
    def series() -> int:
        text = client.get("/metrics", headers=KEY).text
        return sum(len(family.samples) for family in text_string_to_metric_families(text))

    def invent(names: range) -> None:
        for name in names:
            client.get(f"/path/{name}")
            client.request(f"METHOD{name}", "/healthz")
            client.post("/v1/classify", params={"model": f"model-{name}"}, files={"image": RED}, headers=KEY)
            client.get(f"/v2/models/model-{name}/versions/{name}/stats", headers=KEY)

    invent(range(1))
    before = series()
    invent(range(1, 30))
    assert series() == before


def documented_metrics() -> dict[str, tuple[str, frozenset[str]]]:
    """Name -> type and labels, of the rows of the table in docs/operations.md; process metrics have neither."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`(?:cbn|process|python)_[^|]*) \|([^|]*)\|([^|]*)\|", page, re.MULTILINE)
    return {
        name: (kind.strip(), frozenset(re.findall(r"`(\w+)`", labels)))
        for names, kind, labels in rows
        for name in re.findall(r"`(\w+)`", names)
    }


def test_the_documented_metrics_are_those_there_are(families: dict[str, Metric]) -> None:
    documented = documented_metrics()
    assert set(documented) == set(families)
    for name, (kind, labels) in documented.items():
        if name.startswith("cbn_"):
            assert kind == families[name].type, name
            samples = families[name].samples
            used = {label for sample in samples for label in sample.labels} - {"le"}
            assert used == labels, name


def selectors(expression: str) -> list[Any]:
    """The vector selectors of a PromQL expression, by Prometheus's grammar."""
    promql = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    found: list[Any] = []

    def visit(part: Any) -> None:
        if isinstance(part, promql.MatrixSelector):
            found.append(part.vector_selector)
        elif isinstance(part, promql.VectorSelector):
            found.append(part)

    promql.walk(promql.parse(expression), visit)
    return found


def rules() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    content = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def test_alerts_are_promql_over_metrics_and_labels_that_exist(families: dict[str, Metric]) -> None:
    series: dict[str, set[str]] = {"up": set()}
    values: dict[str, set[str]] = {}
    for family in families.values():
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    for rule in rules():
        found = selectors(rule["expr"])
        assert found, rule["alert"]
        for selector in found:
            assert selector.name in series, rule["alert"]
            for matcher in selector.matchers.matchers:
                assert matcher.name in series[selector.name] | {"job", "instance"}, rule["alert"]


def test_alerts_use_label_values_that_exist(families: dict[str, Metric]) -> None:
    from serving.errors import REASONS

    expressions = " ".join(rule["expr"] for rule in rules())
    reasons = {word for text in re.findall(r'reason=~?"([^"]*)"', expressions) for word in text.split("|")}
    assert reasons
    assert reasons <= REASONS
    routes = set(re.findall(r'route="([^"]*)"', expressions))
    assert routes <= {s.labels["route"] for s in families["cbn_requests_total"].samples}
    states = set(re.findall(r'state="([^"]*)"', expressions))
    assert states <= {s.labels["state"] for s in families["cbn_model_state"].samples}


def test_every_alert_is_explained_and_every_reason_documented() -> None:
    from serving.errors import REASONS

    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    explained = {
        name for row in re.findall(r"^\| (`Cbn[^|]*)\|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert explained == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
    listed = page.partition("\nReasons: ")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == REASONS
