"""The Open Inference Protocol: what the public client asks is answered as it expects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cbn_deploy.runtime import Preprocessing
from tests.onnx_models import COLOURS, SHARPNESS, colour_model, describe, write_colour_model
from tests.reference.tolerances import tolerance
from tests.serving.files import BLUE, GREEN, RED
from tests.serving.server import Server

tritonclient = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")


@pytest.fixture(scope="module")
def triton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The colour model with one posterior."""
    path = write_colour_model(tmp_path_factory.mktemp("v2") / "colours.onnx", colour_model(with_posterior=True))
    server = Server(path, "--threads", 1, "--max-images", 8)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def triton(triton_server: Server) -> Iterator[Any]:
    client = tritonclient.InferenceServerClient(triton_server.url.removeprefix("http://"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)


def expected_logits(images: np.ndarray) -> np.ndarray:
    """The colour model by hand."""
    return SHARPNESS * images.mean(axis=(2, 3), dtype=np.float64)


def expected_posterior(images: np.ndarray) -> np.ndarray:
    exponentials = np.exp(images.astype(np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def image_input(images: np.ndarray, binary: bool = True) -> Any:
    tensor = tritonclient.InferInput("images", list(images.shape), "FP32")
    return tensor.set_data_from_numpy(images, binary_data=binary)


def output(name: str, **options: Any) -> Any:
    return tritonclient.InferRequestedOutput(name, **options)


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, **tolerance("served tensor"))


def test_health(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("colours")
    assert triton.is_model_ready("colours", "1")
    assert not triton.is_model_ready("colours", "2")
    assert not triton.is_model_ready("absent")


def test_server_metadata_lists_what_is_spoken_and_nothing_else(triton: Any) -> None:
    metadata = triton.get_server_metadata()
    assert metadata["name"] == "cbn-serve"
    assert set(metadata["extensions"]) == {
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "schedule_policy",
        "statistics",
        "image_bytes",
    }


@pytest.mark.parametrize("version", ["", "1"])
def test_model_metadata(triton: Any, version: str) -> None:
    assert triton.get_model_metadata("colours", version) == {
        "name": "colours",
        "versions": ["1"],
        "platform": "onnxruntime",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "posterior.stem", "datatype": "FP32", "shape": [-1, 3, -1, -1]},
        ],
    }


@pytest.mark.parametrize("version", ["", "1"])
def test_model_config_is_tritons_message(triton: Any, version: str) -> None:
    json_format = pytest.importorskip("google.protobuf.json_format", reason="tritonclient[grpc] is not installed")
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    config = json_format.ParseDict(triton.get_model_config("colours", version), messages.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("colours", "onnxruntime", 8)
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.input] == [
        ("images", messages.TYPE_FP32, [3, 8, 8])
    ]
    assert [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in config.output] == [
        ("logits", messages.TYPE_FP32, [3]),
        ("posterior.stem", messages.TYPE_FP32, [3, -1, -1]),
    ]
    assert config.HasField("dynamic_batching")


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tensors_go_both_ways(
    triton: Any, images: np.ndarray, binary_input: bool, binary_output: bool, compression: str | None
) -> None:
    names = ["posterior.stem", "logits"]
    result = triton.infer(
        "colours",
        [image_input(images, binary_input)],
        outputs=[output(name, binary_data=binary_output) for name in names],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    assert_same(result.as_numpy("logits"), expected_logits(images))
    assert_same(result.as_numpy("posterior.stem"), expected_posterior(images))
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"]) == ("colours", "1")
    assert "id" not in answer
    assert [entry["name"] for entry in answer["outputs"]] == names
    assert all(("data" in entry) != binary_output for entry in answer["outputs"])


def test_without_requested_outputs_all_come_in_binary_as_the_client_asks(triton: Any, images: np.ndarray) -> None:
    result = triton.infer("colours", [image_input(images)], model_version="1", request_id="forty two")
    answer = result.get_response()
    assert answer["id"] == "forty two"
    assert {entry["name"]: entry["parameters"]["binary_data_size"] for entry in answer["outputs"]} == {
        "logits": 4 * 3 * 4,
        "posterior.stem": 4 * 3 * 64 * 4,
    }
    assert_same(result.as_numpy("logits"), expected_logits(images))


def test_one_output_in_binary_and_one_in_json(triton: Any, images: np.ndarray) -> None:
    outputs = [output("logits", binary_data=False), output("posterior.stem")]
    result = triton.infer("colours", [image_input(images)], outputs=outputs)
    assert_same(result.as_numpy("logits"), expected_logits(images))
    assert_same(result.as_numpy("posterior.stem"), expected_posterior(images))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_classification(triton: Any, images: np.ndarray, binary: bool, count: int) -> None:
    outputs = [output("logits", binary_data=binary, class_count=count)]
    rows = triton.infer("colours", [image_input(images)], outputs=outputs).as_numpy("logits")
    assert rows.shape == (4, min(count, 3))
    for row, logits in zip(rows, expected_logits(images), strict=True):
        texts = [entry.decode() if isinstance(entry, bytes) else entry for entry in row]
        values, indices, labels = zip(*(text.split(":") for text in texts), strict=True)
        best = np.argsort(-logits)[:count]
        assert [int(index) for index in indices] == best.tolist()
        assert list(labels) == [COLOURS[index] for index in best]
        assert_same(np.array(values, dtype=np.float64), logits[best])


def test_large_tensors(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """Above some size bodies are read, written and packed in threads; the answers are the same."""
    description = describe(preprocessing=Preprocessing(height=224, width=224))
    model = colour_model(description=description, size=224, with_posterior=True)
    server = start_server(write_colour_model(tmp_path / "large.onnx", model), "--threads", 1)
    images = np.random.default_rng(2).random((8, 3, 224, 224), dtype=np.float32)
    with tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client:
        result = client.infer("large", [image_input(images)], request_compression_algorithm="deflate")
        assert_same(result.as_numpy("logits"), expected_logits(images))
        assert_same(result.as_numpy("posterior.stem"), expected_posterior(images))
        outputs = [output("posterior.stem", binary_data=False)]
        result = client.infer(
            "large", [image_input(images[:1], binary=False)], outputs=outputs, response_compression_algorithm="gzip"
        )
        assert_same(result.as_numpy("posterior.stem"), expected_posterior(images[:1]))


def test_image_files_are_decoded_and_preprocessed(triton: Any) -> None:
    files = np.array([RED, GREEN, BLUE], dtype=np.object_)
    for shape in ([3], [3, 1]):
        tensor = tritonclient.InferInput("image_bytes", shape, "BYTES").set_data_from_numpy(files.reshape(shape))
        outputs = [output("logits", class_count=1)]
        rows = triton.infer("colours", [tensor], outputs=outputs).as_numpy("logits")
        assert [row[0].decode().split(":")[2] for row in rows] == ["red", "green", "blue"]


def test_image_files_give_what_v1_gives(triton: Any, triton_server: Server) -> None:
    tensor = tritonclient.InferInput("image_bytes", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([RED], dtype=np.object_))
    (logits,) = triton.infer("colours", [tensor]).as_numpy("logits").astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    ranked = triton_server.client.post("/v1/classify", files={"image": RED}).json()["results"][0]["predictions"]
    by_index = {entry["index"]: entry["probability"] for entry in ranked}
    assert_same(np.array([by_index[index] for index in range(3)]), probabilities / probabilities.sum())


def test_the_asynchronous_client(triton_server: Server, images: np.ndarray) -> None:
    aio = pytest.importorskip("tritonclient.http.aio", reason="tritonclient[http] is not installed")

    async def talk() -> None:
        async with aio.InferenceServerClient(triton_server.url.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("colours"))["name"] == "colours"
            answers = await asyncio.gather(
                *(client.infer("colours", [image_input(images[i : i + 1])], request_id=str(i)) for i in range(4))
            )
            for i, answer in enumerate(answers):
                assert answer.get_response()["id"] == str(i)
                assert_same(answer.as_numpy("logits"), expected_logits(images[i : i + 1]))

    asyncio.run(talk())


def test_many_requests_on_one_connection(triton: Any, images: np.ndarray) -> None:
    pending = [triton.async_infer("colours", [image_input(images)], request_id=str(i)) for i in range(20)]
    for i, handle in enumerate(pending):
        result = handle.get_result()
        assert result.get_response()["id"] == str(i)
        assert_same(result.as_numpy("logits"), expected_logits(images))


def test_statistics_count_images_requests_and_batches(
    start_server: Callable[..., Server], colours_path: Path, images: np.ndarray
) -> None:
    server = start_server(colours_path, f"other={colours_path}", "--threads", 1)
    with tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client:
        for _ in range(3):
            client.infer("colours", [image_input(images)])
        everything = client.get_inference_statistics()["model_stats"]
        assert [(entry["name"], entry["inference_count"]) for entry in everything] == [("colours", 12), ("other", 0)]
        for version in ("", "1"):
            (entry,) = client.get_inference_statistics("colours", version)["model_stats"]
            assert (entry["version"], entry["inference_count"], entry["execution_count"]) == ("1", 12, 3)
            assert entry["last_inference"] > 1.7e12
            assert entry["inference_stats"]["success"]["count"] == 3
            assert entry["inference_stats"]["success"]["ns"] >= entry["inference_stats"]["compute_infer"]["ns"] > 0
            assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in entry["batch_stats"]] == [
                (4, 3)
            ]
        with pytest.raises(Exception, match="no version '7'"):
            client.get_inference_statistics("colours", "7")


def test_the_repository(start_server: Callable[..., Server], colours_path: Path, images: np.ndarray) -> None:
    server = start_server(colours_path, f"other={colours_path}", "--threads", 1)
    with tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client:
        index = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in ("colours", "other")]
        assert client.get_model_repository_index() == index
        client.unload_model("other")
        assert not client.is_model_ready("other")
        ready = server.client.post("/v2/repository/index", json={"ready": True}).json()
        assert [entry["name"] for entry in ready] == ["colours"]
        client.load_model("other")
        assert client.is_model_ready("other")
        assert_same(client.infer("other", [image_input(images)]).as_numpy("logits"), expected_logits(images))
        client.load_model("colours")
        with pytest.raises(Exception, match=r"404.*'absent'"):
            client.load_model("absent")
        with pytest.raises(Exception, match="its own file only"):
            client.load_model("colours", config="{}")


def test_versions_answer_each_for_itself(
    start_server: Callable[..., Server], tmp_path: Path, images: np.ndarray
) -> None:
    for version, factor in (("1", 1.0), ("2", 2.0), ("10", 3.0)):
        (tmp_path / "colours" / version).mkdir(parents=True)
        write_colour_model(tmp_path / "colours" / version / "model.onnx", colour_model(broken_weight=factor))
    server = start_server("--model-repository", tmp_path, "--keep-versions", 3, "--threads", 1)
    with tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert sorted(client.get_model_metadata("colours")["versions"], key=int) == ["1", "2", "10"]
        for version, answers, factor in (("1", "1", 1.0), ("2", "2", 2.0), ("10", "10", 3.0), ("", "10", 3.0)):
            result = client.infer("colours", [image_input(images)], model_version=version)
            assert result.get_response()["model_version"] == answers
            assert_same(result.as_numpy("logits"), factor * expected_logits(images))
        counted = client.get_inference_statistics("colours")["model_stats"]
        assert {entry["version"]: entry["inference_count"] for entry in counted} == {"1": 4, "2": 4, "10": 8}
        assert not client.is_model_ready("colours", "3")


def test_what_is_not_offered_is_the_clients_own_exception(triton: Any, images: np.ndarray) -> None:
    from tritonclient.utils import InferenceServerException

    refused: list[Callable[[], Any]] = [
        triton.get_system_shared_memory_status,
        triton.get_cuda_shared_memory_status,
        lambda: triton.register_system_shared_memory("region", "/key", 64),
        lambda: triton.register_cuda_shared_memory("region", b"handle", 0, 64),
        triton.unregister_system_shared_memory,
        lambda: triton.unregister_cuda_shared_memory("region"),
        triton.get_trace_settings,
        lambda: triton.update_trace_settings("colours", {"trace_level": ["OFF"]}),
        triton.get_log_settings,
        lambda: triton.update_log_settings({"log_info": False}),
    ]
    for call in refused:
        with pytest.raises(InferenceServerException) as error:
            call()
        assert error.value.status() == "501"
        assert str(error.value.message()).endswith(".")

    shared = tritonclient.InferInput("images", list(images.shape), "FP32")
    shared.set_shared_memory("region", images.nbytes)
    with pytest.raises(InferenceServerException, match="in shared memory"):
        triton.infer("colours", [shared])
    with pytest.raises(InferenceServerException, match="keep no state"):
        triton.infer("colours", [image_input(images)], sequence_id=5)
    triton.infer("colours", [image_input(images)], priority=1)  # there is one level only


def test_a_timeout_is_kept(start_server: Callable[..., Server], slow_path: Path, images: np.ndarray) -> None:
    server = start_server(slow_path, "--threads", 1)
    with tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client:
        with pytest.raises(Exception, match="504"):
            client.infer("slow", [image_input(images)], timeout=50_000)
        assert_same(client.infer("slow", [image_input(images)]).as_numpy("logits"), expected_logits(images))


def test_posterior_outputs_of_a_real_model_are_listed(cbn_server: Server) -> None:
    outputs = cbn_server.client.get("/v2/models/digits").json()["outputs"]
    assert outputs[0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 10]}
    assert len(outputs) == 20
    assert all(entry["name"].startswith("posterior.") and entry["shape"][1] == 4 for entry in outputs[1:])


def test_a_real_models_tensors_are_its_sessions(cbn_server: Server, cbn_path: Path) -> None:
    from cbn_deploy.runtime.factory import open_session

    with open_session(cbn_path, "onnxruntime", 1) as session:
        size = session.description.preprocessing
        images = np.random.default_rng(1).random((2, 3, size.height, size.width), dtype=np.float32)
        expected = session.run(images)
    with tritonclient.InferenceServerClient(cbn_server.url.removeprefix("http://")) as client:
        result = client.infer("digits", [image_input(images)])
    np.testing.assert_array_equal(result.as_numpy("logits"), expected.logits)
    for layer, posterior in expected.posteriors.items():
        np.testing.assert_array_equal(result.as_numpy(f"posterior.{layer}"), posterior)


def test_an_unknown_model_is_the_clients_own_exception(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="no model 'absent'"):
        triton.get_model_metadata("absent")


def test_no_content_type_is_needed_and_any_is_ignored(triton_server: Server, images: np.ndarray) -> None:
    body = {"inputs": [{"name": "images", "datatype": "FP32", "shape": [4, 3, 8, 8], "data": images.tolist()}]}
    for content_type in (None, "text/plain", "multipart/form-data"):
        request = triton_server.client.build_request("POST", "/v2/models/colours/infer", json=body)
        del request.headers["Content-Type"]
        if content_type:
            request.headers["Content-Type"] = content_type
        answer = triton_server.client.send(request)
        assert answer.headers["content-type"] == "application/json"
        logits = next(entry for entry in answer.json()["outputs"] if entry["name"] == "logits")
        assert logits["shape"] == [4, 3]
        assert_same(np.array(logits["data"]).reshape(4, 3), expected_logits(images))


def test_keys_guard_everything_but_health(
    start_server: Callable[..., Server], colours_path: Path, tmp_path: Path, images: np.ndarray
) -> None:
    (tmp_path / "keys").write_text("secret\n")
    server = start_server(colours_path, "--threads", 1, "--api-key-file", tmp_path / "keys")
    with tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_ready()
        for call in (client.get_server_metadata, client.get_model_repository_index, client.get_log_settings):
            with pytest.raises(Exception, match="needs an API key"):
                call()
        with pytest.raises(Exception, match="needs an API key"):
            client.unload_model("colours")
        headers = {"X-API-Key": "secret"}
        answer = client.infer("colours", [image_input(images)], headers=headers)
        assert_same(answer.as_numpy("logits"), expected_logits(images))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/models/absent/ready", 404),
        ("GET", "/v2/models/colours/versions/2", 404),
        ("GET", "/v2/models/colours/versions/2/config", 404),
        ("GET", "/v2/models/absent/stats", 404),
        ("GET", "/v2/models/colours/infer", 405),
        ("DELETE", "/v2/models/colours", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/", 404),
    ],
)
def test_errors_have_the_protocols_shape(triton_server: Server, method: str, path: str, status: int) -> None:
    response: httpx.Response = triton_server.client.request(method, path)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert response.headers["content-type"] == "application/json"
