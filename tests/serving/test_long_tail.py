"""What nobody else serves, through a real server: estimated priors, calibrated answers, rejection, pictures, drift."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from cbn_deploy.runtime import Prediction
from cbn_deploy.runtime.description import ENERGY_LEVELS
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.familiarity import energies
from cbn_deploy.runtime.preprocessing import normalize
from serving.api.answers import image_results
from serving.api.parameters import Choices
from tests.onnx_models import COLOURS, colour_model, describe, write_colour_model
from tests.reference.tolerances import tolerance
from tests.serving.files import BLUE, GREEN, RED, encode
from tests.serving.server import Server
from tests.serving.test_prior_estimate import expectation_maximisation

TEMPERATURE = 2.5
# Energies of the colour model are about -9 for a saturated image and -5 for a grey one.
QUANTILES = {
    "all": tuple((-9.0 + np.array(ENERGY_LEVELS)).tolist()),
    "few": tuple((-2.0 + np.array(ENERGY_LEVELS)).tolist()),
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour model with a temperature, energies of known images, posteriors and their known occupancy."""
    description = describe(temperature=TEMPERATURE, energy_quantiles=QUANTILES, occupancy={"stem": (0.2, 0.3, 0.5)})
    model = colour_model(description=description, with_posterior=True)
    return write_colour_model(tmp_path_factory.mktemp("long_tail") / "colours.onnx", model)


@pytest.fixture(scope="module")
def long_tail(model_path: Path) -> Iterator[Server]:
    running = Server(model_path, "--threads", 1)
    yield running
    running.stop()


def classify(server: Server, *images: bytes, **params: Any) -> dict[str, Any]:
    response = server.client.post("/v1/classify", params=params, files=[("image", image) for image in images])
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def logits_of(model_path: Path, *images: bytes) -> np.ndarray:
    opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    pixels = [np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)) for image in opened]
    with open_session(model_path, threads=1) as session:
        return session.run(normalize(np.stack(pixels), session.description.preprocessing)).logits.astype(np.float64)


def probabilities(result: dict[str, Any]) -> np.ndarray:
    by_index = {line["index"]: line["probability"] for line in result["predictions"]}
    return np.array([by_index[index] for index in range(len(by_index))])


def softmax(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(z) / np.exp(z).sum(-1, keepdims=True))


def test_probabilities_are_calibrated_and_the_prior_comes_after_the_temperature(
    long_tail: Server, model_path: Path
) -> None:
    z = logits_of(model_path, RED)[0]
    answer = classify(long_tail, RED)
    assert answer["calibrated"] is True
    assert_allclose(probabilities(answer["results"][0]), softmax(z / TEMPERATURE), **tolerance("served probability"))
    assert_allclose(answer["results"][0]["energy"], -np.log(np.exp(z).sum()), **tolerance("runtime model"))
    shifted = classify(long_tail, RED, prior="uniform")
    expected = softmax(z / TEMPERATURE - np.log([0.75, 0.2, 0.05]))
    assert_allclose(probabilities(shifted["results"][0]), expected, **tolerance("served probability"))
    assert shifted["prior"] == {
        "kind": "uniform",
        "applied": True,
        "images": None,
        "needed": None,
        "probabilities": None,
    }
    (model,) = long_tail.client.get("/v1/models").json()["models"]
    assert (model["calibrated"], model["rejects"], model["explains"]) == (True, True, True)


def test_a_prior_is_estimated_from_what_arrives(start_server: Callable[..., Server], model_path: Path) -> None:
    server = start_server(model_path, "--threads", 1)
    first = classify(server, RED, prior="estimate")
    assert first["prior"] == {"kind": "estimate", "applied": False, "images": 1, "needed": 64, "probabilities": None}
    assert first["results"][0]["predictions"] == classify(server, RED)["results"][0]["predictions"]
    images = [BLUE] * 6 + [GREEN] * 2
    for _ in range(9):
        answer = classify(server, *images, prior="estimate")
    sent = [RED] * 2 + images * 9
    assert (answer["prior"]["applied"], answer["prior"]["images"]) == (True, len(sent))
    model_prior = np.array([0.75, 0.2, 0.05])
    known = softmax(logits_of(model_path, RED, GREEN, BLUE) / TEMPERATURE)
    rows = known[[(RED, GREEN, BLUE).index(image) for image in sent]]
    # The server estimated when there were enough, and not again until a sixteenth of the images was new.
    expected = expectation_maximisation(rows, model_prior, rounds=500)
    assert list(answer["prior"]["probabilities"]) == list(COLOURS)
    assert_allclose(list(answer["prior"]["probabilities"].values()), expected, atol=2e-3)
    corrected = softmax(
        np.log(known[2]) + np.log(list(answer["prior"]["probabilities"].values())) - np.log(model_prior)
    )
    assert_allclose(probabilities(answer["results"][0]), corrected, **tolerance("served probability"))


def test_unfamiliar_images_are_rejected_with_a_reason(long_tail: Server) -> None:
    """Of 'all' known images a tenth has an energy above -8.1, of those that look like the rare blue one above -1.1."""
    grey = encode(np.full((8, 8, 3), 60, np.uint8))
    red, blue, unlike = classify(long_tail, RED, BLUE, grey, reject=0.1)["results"]
    for result, threshold in ((red, -8.1), (blue, -1.1), (unlike, -8.1)):
        assert result["energy_threshold"] == pytest.approx(threshold)
        assert result["rejected"] is (result["energy"] > threshold)
        assert (result["reject_reason"] is not None) is result["rejected"]
    assert (red["rejected"], blue["rejected"], unlike["rejected"]) == (False, False, True)
    assert "below which 90 % of the known images stay" in unlike["reject_reason"]
    strict = classify(long_tail, RED, reject=".5")["results"][0]
    assert strict["energy_threshold"] == pytest.approx(-8.5)
    usual = classify(long_tail, RED, reject="true")["results"][0]
    assert usual["energy_threshold"] == pytest.approx(-8.05)
    prior = classify(long_tail, RED, reject="true", prior='{"blue": 1}')["results"][0]
    assert prior["energy_threshold"] == usual["energy_threshold"], "a prior does not change how familiar an image is"
    assert classify(long_tail, RED, reject="false")["results"][0]["rejected"] is None


def test_a_reason_names_the_group(start_server: Callable[..., Server], tmp_path: Path) -> None:
    quantiles = {group: tuple((-20.0 + np.array(ENERGY_LEVELS)).tolist()) for group in ("all", "few")}
    path = write_colour_model(tmp_path / "c.onnx", colour_model(description=describe(energy_quantiles=quantiles)))
    result = classify(start_server(path, "--threads", 1), BLUE, reject="true")["results"][0]
    assert result["rejected"] is True
    assert re.search(r"below which 95 % of the known images of 'few' classes stay\.$", result["reject_reason"])


@pytest.mark.parametrize("difference", [1.0, 1e-3, 1e-9, 2e-15])
def test_a_reason_shows_two_energies_that_differ(difference: float) -> None:
    logits = np.zeros((1, 3), np.float32)
    threshold = float(energies(logits)[0]) - difference
    description = describe(energy_quantiles={"all": (threshold,) * len(ENERGY_LEVELS)})
    (result,) = image_results(Prediction(logits=logits), description, Choices(top_k=1, reject=0.0001))
    assert result.rejected is True
    found, limit = re.findall(r"(?:is|energy|above) (-[0-9.]+)[, ]", str(result.reject_reason))
    assert float(found) > float(limit)
    assert "99.99 %" in str(result.reject_reason)


def test_pictures_show_the_posteriors(cbn_server: Server, cbn_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.checkpoints import digit_pixels

    pixels, _ = digit_pixels(2)
    answer = classify(cbn_server, *(encode(image) for image in pixels), model="digits", explain="true")
    with open_session(cbn_path, threads=1) as session:
        prediction = session.run(normalize(pixels, session.description.preprocessing))
    legend = [tuple(bytes.fromhex(entry["colour"].removeprefix("#"))) for entry in answer["legend"]]
    assert [entry["component"] for entry in answer["legend"]] == [0, 1, 2, 3]
    for index, result in enumerate(answer["results"]):
        explanation = result["explanation"]
        assert (explanation["height"], explanation["width"]) == (64, 64)
        assert [drawn["layer"] for drawn in explanation["maps"]] == list(prediction.posteriors)
        for drawn in explanation["maps"]:
            w = prediction.posteriors[drawn["layer"]][index]
            assert (drawn["height"], drawn["width"]) == w.shape[1:]
            image = Image.open(io.BytesIO(base64.b64decode(drawn["png"])))
            factor = 64 // w.shape[1]
            claimed = np.asarray(image)[::factor, ::factor] // 8
            clear = np.sort(w, axis=0)[-1] - np.sort(w, axis=0)[-2] > 1e-3  # two machines may see a tie differently
            assert_array_equal(claimed[clear], w.argmax(0)[clear])
            certain = w.max(0) > 0.95
            colours = np.asarray(image.convert("RGB"))[::factor, ::factor][certain]
            assert {tuple(c) for c in colours.tolist()} <= set(legend)


def metric(server: Server, name: str) -> dict[str, float]:
    found = re.findall(rf"^{name}{{(.*)}} (\S+)$", server.client.get("/metrics").text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def test_occupancy_is_a_drift_signal(start_server: Callable[..., Server], model_path: Path) -> None:
    server = start_server(model_path, "--threads", 1)
    classify(server, RED)
    assert metric(server, "cbn_component_occupancy") == {}, "too early"
    deadline = 200
    while not metric(server, "cbn_component_occupancy") and (deadline := deadline - 1):
        classify(server, *[RED] * 8)
    shares = metric(server, "cbn_component_occupancy")
    layer = 'layer="stem",model="colours",version="1"'
    occupancy = [shares[f'component="{component}",{layer}'] for component in range(3)]
    with open_session(model_path, threads=1) as session:
        pixels = np.asarray(Image.open(io.BytesIO(RED)).resize((8, 8), Image.Resampling.BILINEAR))
        expected = session.run(normalize(pixels[None], session.description.preprocessing)).posteriors["stem"][0]
    assert_allclose(occupancy, expected.mean((1, 2)), **tolerance("served probability"))
    distance = 0.5 * np.abs(np.array(occupancy) - (0.2, 0.3, 0.5)).sum()
    assert metric(server, "cbn_occupancy_drift")[layer] == pytest.approx(distance, rel=1e-6)
    assert metric(server, "cbn_occupancy_images_total")['model="colours",version="1"'] >= 32


def test_a_timeout_and_a_version_can_be_asked_for(long_tail: Server) -> None:
    assert classify(long_tail, RED, timeout=20, version="1")["version"] == "1"
    for impossible in (5e-324, 0.009, 0, -1, "nan"):
        refused = long_tail.client.post("/v1/classify", params={"timeout": impossible}, files={"image": RED})
        assert refused.status_code == 422, impossible
    assert long_tail.client.post("/v1/classify", params={"version": "7"}, files={"image": RED}).status_code == 404


def test_an_answer_that_comes_too_late_is_not_waited_for(start_server: Callable[..., Server], slow_path: Path) -> None:
    server = start_server(slow_path, "--threads", 1)
    late = server.client.post("/v1/classify", params={"timeout": 0.01}, files={"image": RED})
    assert late.status_code == 504
    assert "0.01 seconds" in late.json()["detail"]


def test_every_parameter_is_documented(long_tail: Server) -> None:
    operation = long_tail.client.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]
    documented = {parameter["name"]: parameter for parameter in operation["parameters"] if parameter["in"] == "query"}
    assert set(documented) == {"model", "version", "timeout", "top_k", "prior", "reject", "explain"}
    assert all(parameter["description"] for parameter in documented.values())
