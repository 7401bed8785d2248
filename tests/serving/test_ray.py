"""The application on a real Ray, in a process of its own: two replicas, real requests, and nothing left afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray_process import ROOT, needs_ray, run_ray
from tests.serving.files import BLUE, RED

pytestmark = needs_ray

DRIVER = """
import json, logging, socket, sys
import httpx, ray
from ray import serve
from prometheus_client.parser import text_string_to_metric_families
from serving.ray import app

model, red, blue, temporary = sys.argv[1:]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
ray.init(
    num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, _temp_dir=temporary, log_to_driver=False,
    logging_level=logging.ERROR,
)
found = {}
try:
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"models": f"colours={model}", "min_replicas": "2", "max_replicas": "2", "max_images": "3"}))
    deployment = serve.status().applications["default"].deployments["cbn-serve"]
    found["replicas"] = {str(state): count for state, count in deployment.replica_states.items()}
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
    found["ready"] = client.get("/v2/health/ready").status_code
    answer = client.post("/v1/classify", files={"image": open(red, "rb")}).json()
    found["answer"] = [answer["model"], answer["results"][0]["predictions"][0]["label"]]
    found["too many"] = client.post("/v1/classify", files=[("image", open(blue, "rb"))] * 4).status_code
    found["nowhere"] = client.get("/nowhere").json()["status"]
    processes = {}
    for _ in range(60):
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = {sample.name: sample.value for family in families for sample in family.samples}
        processes[samples["process_start_time_seconds"]] = True
        if len(processes) == 2:
            break
    found["processes"] = len(processes)
finally:
    serve.shutdown()
    ray.shutdown()
print("FOUND" + json.dumps(found))
"""


def test_two_replicas_answer(colours_path: Path, tmp_path: Path) -> None:
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    red.write_bytes(RED)
    blue.write_bytes(BLUE)

    done = run_ray(DRIVER, colours_path, red, blue)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.split("FOUND")[1])
    assert found == {
        "replicas": {"RUNNING": 2},
        "ready": 200,
        "answer": ["colours", "red"],
        "too many": 413,
        "nowhere": 404,
        "processes": 2,
    }


def test_arguments_are_checked_where_the_application_is_built(colours_path: Path) -> None:
    code = f"""
from cbn_deploy.errors import SettingsError
from serving.ray import app
for arguments in (
    {{"models": "{colours_path}", "max_bach": "3"}},
    {{"models": "{colours_path}", "min_replicas": "5", "max_replicas": "2"}},
    {{"models": "{colours_path}", "cpus": "many"}},
    {{"models": "{colours_path}", "max_batch": "0"}},
    {{}},
):
    try:
        app(arguments)
    except SettingsError as error:
        print(error)
    else:
        raise AssertionError(arguments)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in ("max_bach", "below min_replicas", "cpus", "max-batch", "Say which model files"):
        assert word in done.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [({}, False), ({"model_control": "true"}, True), ({"api_key_file": "keys"}, True)],
)
def test_nobody_loads_models_through_rays_proxy_unless_told(arguments: dict[str, str], allowed: bool) -> None:
    from serving.ray import _read

    _, settings = _read({"models": "model.onnx", **arguments})
    assert settings.allows_model_control is allowed
