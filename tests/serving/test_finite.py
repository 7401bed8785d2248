"""A model that has no finite answer to some images, as an overflow in a lower precision makes it: nobody is misled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from cbn_deploy.runtime import Prediction
from cbn_deploy.runtime.description import ENERGY_LEVELS
from serving.api.answers import image_results
from serving.api.parameters import Choices
from serving.errors import ApiError
from tests.onnx_models import colour_model, describe, write_colour_model
from tests.serving.files import GREEN, RED, colour
from tests.serving.server import Server
from tests.serving.test_errors import assert_problem

WHITE = colour(255, 255, 255)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The colour model with the energies of known images, blind to what is nearly white."""
    quantiles = {"all": tuple((-9.0 + np.array(ENERGY_LEVELS)).tolist())}
    model = colour_model(description=describe(energy_quantiles=quantiles), blind_above=0.9)
    running = Server(write_colour_model(tmp_path_factory.mktemp("blind") / "colours.onnx", model), "--threads", 1)
    yield running
    running.stop()


def classify(server: Server, *images: bytes, **params: Any) -> httpx.Response:
    return server.client.post("/v1/classify", params=params, files=[("image", image) for image in images])


def infer(server: Server, *values: float, classes: int) -> httpx.Response:
    """Of images that have one value everywhere."""
    images = np.broadcast_to(np.float32(values)[:, None, None, None], (len(values), 3, 8, 8))
    tensor = {"name": "images", "datatype": "FP32", "shape": images.shape, "data": images.ravel().tolist()}
    output = {"name": "logits", "parameters": {"classification": classes}}
    return server.client.post("/v2/models/colours/infer", json={"inputs": [tensor], "outputs": [output]})


@pytest.mark.parametrize("params", [{}, {"top_k": 1}, {"reject": "true"}, {"prior": "uniform"}])
def test_no_ranking_of_nothing(server: Server, params: dict[str, Any]) -> None:
    refused = classify(server, WHITE, **params)
    assert assert_problem(refused, 500) == "The model gives no finite answer to the image."
    while (entry := server.wait_for_log("no answer"))["request_id"] != refused.headers["x-request-id"]:
        pass
    assert (entry["level"], entry["model"]) == ("error", "colours")
    assert "finite" in entry["reason"]
    assert classify(server, RED, **params).status_code == 200


def test_the_image_is_named(server: Server) -> None:
    refused = classify(server, RED, GREEN, WHITE, RED)
    assert assert_problem(refused, 500) == "The model gives no finite answer to image 3 of 4."
    assert classify(server, RED, GREEN).status_code == 200


def test_classes_of_the_inference_protocol_are_none_either(server: Server) -> None:
    refused = infer(server, 0.5, 0.95, classes=2)
    assert refused.status_code == 500
    assert refused.json() == {"error": "The model gives no finite answer to image 2 of 2."}
    assert infer(server, 0.5, classes=2).status_code == 200
    # Tensors are the model's own, whatever they hold: JSON has null for what it cannot say.
    tensors = infer(server, 0.95, classes=0)
    assert tensors.status_code == 200
    assert json.loads(tensors.text)["outputs"][0]["data"] == [None] * 3


def test_nothing_is_explained_by_posteriors_that_are_none() -> None:
    posterior = np.full((2, 3, 4, 4), 1 / 3, np.float32)
    posterior[1, 0, 2, 2] = np.nan
    prediction = Prediction(logits=np.ones((2, 3), np.float32), posteriors={"stem": posterior})
    assert len(image_results(prediction, describe(), Choices(top_k=1))) == 2
    with pytest.raises(ApiError, match="image 2 of 2") as refused:
        image_results(prediction, describe(), Choices(top_k=1, explain=True))
    assert refused.value.status == 500
