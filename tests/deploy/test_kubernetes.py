"""The manifests against Kubernetes' own schema, and what they say against the server that they start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.settings import ServingSettings
from tests.onnx_models import write_colour_model
from tests.serving.files import RED
from tests.serving.server import Server

yaml = pytest.importorskip("yaml", reason="pyyaml is not installed")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
NO_MANIFEST = {"kustomization.yaml", "prometheus-adapter.yaml"}
NOT_APPLIED = NO_MANIFEST | {"model-loader.yaml"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    return read("deployment")


@pytest.fixture(scope="module")
def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return only


@pytest.fixture(scope="module")
def pod_server(container: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real server, started with the manifest's own arguments and environment, its paths aside."""
    models = tmp_path_factory.mktemp("models")
    (models / "colours" / "1").mkdir(parents=True)
    write_colour_model(models / "colours" / "1" / "model.onnx")
    arguments = [str(models) if argument == "/models" else argument for argument in container["args"]]
    environment = {entry["name"]: entry["value"] for entry in container["env"] if entry["name"] != "CBN_PORT"}
    server = Server(*arguments, environment={**environment, "CBN_HOST": "127.0.0.1"})
    yield server
    server.stop()


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml") if path.name not in NO_MANIFEST))
def test_kubernetes_own_schema_accepts_it(name: str) -> None:
    """Strict: a field that Kubernetes does not know is an error."""
    schema = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    schema.validate(read(name), schema.latest_version(), strict=True)


def test_the_schema_would_notice_a_misspelt_field(deployment: dict[str, Any]) -> None:
    schema = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    broken = yaml.safe_load(yaml.safe_dump(deployment).replace("terminationGracePeriodSeconds", "terminationGrace"))
    with pytest.raises(schema.ValidationError):
        schema.validate(broken, schema.latest_version(), strict=True)


def test_the_kustomization_names_every_file() -> None:
    applied = {path.name for path in FOLDER.glob("*.yaml")} - NOT_APPLIED
    kustomization = read("kustomization")
    assert set(kustomization["resources"]) == applied
    assert (
        kustomization["images"][0]["name"] == read("deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
    )


def test_everything_is_about_the_same_pods(deployment: dict[str, Any]) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert read("service")["spec"]["selector"] == labels
    assert read("poddisruptionbudget")["spec"]["selector"]["matchLabels"] == labels
    assert read("networkpolicy")["spec"]["podSelector"]["matchLabels"] == labels
    target = read("horizontalpodautoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    volume = deployment["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]
    assert volume["claimName"] == read("persistentvolumeclaim")["metadata"]["name"]


def test_ports_are_the_servers(deployment: dict[str, Any], container: dict[str, Any]) -> None:
    (port,) = container["ports"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert environment["CBN_PORT"] == str(port["containerPort"]) == annotations["prometheus.io/port"]
    names = {
        *(container[probe]["httpGet"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")),
        read("service")["spec"]["ports"][0]["targetPort"],
        read("networkpolicy")["spec"]["ingress"][0]["ports"][0]["port"],
    }
    assert names == {port["name"]}


def test_the_environment_is_settings(container: dict[str, Any]) -> None:
    for entry in container["env"]:
        assert entry["name"].removeprefix("CBN_").lower() in ServingSettings.model_fields


def test_a_pod_is_not_killed_while_it_drains(deployment: dict[str, Any], container: dict[str, Any]) -> None:
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    draining = float(environment["CBN_DRAIN_DELAY"]) + float(environment["CBN_DRAIN_TIMEOUT"])
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > draining
    ready = container["readinessProbe"]
    assert float(environment["CBN_DRAIN_DELAY"]) > ready["periodSeconds"] * ready["failureThreshold"]


def test_the_user_is_the_images_own(deployment: dict[str, Any], container: dict[str, Any]) -> None:
    users = set(re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    pod = deployment["spec"]["template"]["spec"]["securityContext"]
    assert (str(pod["runAsUser"]), str(pod["runAsGroup"])) in users
    assert pod["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(mount["readOnly"] for mount in container["volumeMounts"])


def test_the_loader_writes_where_the_servers_read(deployment: dict[str, Any], container: dict[str, Any]) -> None:
    loader = read("model-loader")["spec"]
    (only,) = loader["containers"]
    claim = read("persistentvolumeclaim")
    assert loader["volumes"][0]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert only["volumeMounts"] == [{"name": "models", "mountPath": container["volumeMounts"][0]["mountPath"]}]
    servers = deployment["spec"]["template"]["spec"]["securityContext"]
    assert loader["securityContext"]["runAsUser"] == servers["runAsUser"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_probes_ask_what_the_server_answers(container: dict[str, Any], pod_server: Server) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod_server.client.get(container[probe]["httpGet"]["path"]).status_code == 200
    assert pod_server.client.post("/v1/classify", files={"image": RED}).json()["model"] == "colours"


def test_the_autoscaler_asks_for_a_metric_that_the_server_has(deployment: dict[str, Any], pod_server: Server) -> None:
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    scraped = pod_server.client.get(annotations["prometheus.io/path"]).text
    (metric,) = read("horizontalpodautoscaler")["spec"]["metrics"]
    (rule,) = read("prometheus-adapter")["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    series = rule["seriesQuery"].partition("{")[0]
    assert f"# TYPE {series} gauge" in scraped
    assert f'{series}{{model="colours"}} 0.0' in scraped


def test_draining_is_seen_by_the_readiness_probe(container: dict[str, Any], tmp_path: Path) -> None:
    model = write_colour_model(tmp_path / "colours.onnx")
    delay = next(entry["value"] for entry in container["env"] if entry["name"] == "CBN_DRAIN_DELAY")
    server = Server(model, environment={"CBN_DRAIN_DELAY": delay})
    try:
        server.process.terminate()
        server.wait_for_log("draining")
        assert server.client.get(container["readinessProbe"]["httpGet"]["path"]).status_code == 503
        assert server.client.get(container["livenessProbe"]["httpGet"]["path"]).status_code == 200
    finally:
        server.stop()
