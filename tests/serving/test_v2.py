"""The Open Inference Protocol, asked by the public client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.server import Server

tritonclient = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")


@pytest.fixture
def triton(server: Server) -> Iterator[object]:
    client = tritonclient.InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def test_health(triton: object) -> None:
    assert triton.is_server_live()  # type: ignore[attr-defined]
    assert triton.is_server_ready()  # type: ignore[attr-defined]
    assert triton.is_model_ready("colours")  # type: ignore[attr-defined]
    assert not triton.is_model_ready("absent")  # type: ignore[attr-defined]


def test_metadata(triton: object) -> None:
    assert triton.get_server_metadata()["name"] == "cbn-serve"  # type: ignore[attr-defined]
    assert triton.get_model_metadata("colours") == {  # type: ignore[attr-defined]
        "name": "colours",
        "versions": ["1"],
        "platform": "onnxruntime",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
    }


def test_posterior_outputs_are_listed(cbn_server: Server) -> None:
    outputs = cbn_server.client.get("/v2/models/digits").json()["outputs"]
    assert outputs[0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 10]}
    assert len(outputs) == 20
    assert all(output["name"].startswith("posterior.") and output["shape"][1] == 4 for output in outputs[1:])


def test_an_unknown_model_is_the_clients_own_exception(triton: object) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="no model 'absent'"):
        triton.get_model_metadata("absent")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2/nothing", 404), ("POST", "/v2/health/live", 405), ("GET", "/v2/models/absent/ready", 404)],
)
def test_errors_have_the_protocols_shape(server: Server, method: str, path: str, status: int) -> None:
    response = server.client.request(method, path)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert response.headers["content-type"] == "application/json"
