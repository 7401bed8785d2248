"""Classification over HTTP: right answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.testing import assert_allclose

from cbn_deploy.native_library import native_library
from tests.onnx_models import COLOURS
from tests.reference.tolerances import tolerance
from tests.serving.files import BLUE, GREEN, RED, colour, encode
from tests.serving.server import Server

FILES = {"red": RED, "green": GREEN, "blue": BLUE}


def labels(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [result["predictions"][0]["label"] for result in response.json()["results"]]


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_every_format_raw_and_as_a_form(server: Server, name: str, kind: str) -> None:
    shade = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}[name]
    content = colour(*shade, kind=kind)
    raw = server.client.post("/v1/classify", content=content, headers={"Content-Type": f"image/{kind.lower()}"})
    assert labels(raw) == [name]
    assert labels(server.client.post("/v1/classify", files={"image": content})) == [name]


def test_the_answers_are_in_the_order_of_the_images(server: Server) -> None:
    for order in itertools.permutations(COLOURS):
        files = [("image", (f"{index}.png", FILES[name])) for index, name in enumerate(order)]
        assert labels(server.client.post("/v1/classify", files=files)) == list(order)


def test_the_whole_answer(server: Server) -> None:
    response = server.client.post("/v1/classify", files={"image": RED}, headers={"X-Request-ID": "my-request.1"})
    answer = response.json()
    assert response.headers["x-request-id"] == answer["request_id"] == "my-request.1"
    assert answer["model"] == "colours"
    timing = answer["timing"]
    assert set(timing) == {"decode_ms", "queue_ms", "inference_ms", "batch_size"}
    assert timing.pop("batch_size") == 1
    assert all(milliseconds >= 0 for milliseconds in timing.values())
    assert (answer["calibrated"], answer["prior"], answer["legend"]) == (False, None, None)
    (result,) = answer["results"]
    assert [line["shot_group"] for line in result["predictions"]] == ["many", "medium", "few"]
    assert [COLOURS[line["index"]] for line in result["predictions"]] == [
        line["label"] for line in result["predictions"]
    ]
    assert sum(line["probability"] for line in result["predictions"]) == pytest.approx(1.0)
    for asked_for in ("occupancy", "explanation", "rejected", "reject_reason", "energy_threshold"):
        assert result[asked_for] is None


def test_top_k(server: Server) -> None:
    for top_k, expected in ((1, 1), (2, 2), (3, 3), (10**6, 3)):
        response = server.client.post("/v1/classify", params={"top_k": top_k}, files={"image": RED})
        assert len(response.json()["results"][0]["predictions"]) == expected


def test_prior_moves_the_answer_but_not_the_energy(server: Server) -> None:
    plain = server.client.post("/v1/classify", files={"image": RED}).json()["results"][0]
    blue = server.client.post("/v1/classify", params={"prior": '{"blue": 1}'}, files={"image": RED}).json()["results"][
        0
    ]
    assert plain["predictions"][0]["label"] == "red"
    assert blue["predictions"][0] == {"label": "blue", "index": 2, "probability": 1.0, "shot_group": "few"}
    assert blue["energy"] == plain["energy"]


def test_a_real_model_gives_the_probabilities_of_eager_torch(cbn_server: Server, checkpoint_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from cbn_deploy.checkpoint import load_checkpoint, load_model
    from tests.checkpoints import CLASS_COUNTS, CLASS_NAMES, digit_pixels

    pixels, _ = digit_pixels(8)
    x = torch.from_numpy(((pixels / 255.0 - 0.5) / 0.25).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = load_model(load_checkpoint(checkpoint_path)).eval()(x).double()
    files = [("image", encode(image)) for image in pixels]
    for prior, shift in ((None, 0.0), ("uniform", -torch.tensor(CLASS_COUNTS).double().log())):
        params = {"model": "digits", "top_k": 10, **({"prior": prior} if prior else {})}
        response = cbn_server.client.post("/v1/classify", params=params, files=files)
        assert labels(response) == [CLASS_NAMES[index] for index in (logits + shift).argmax(1).tolist()]
        for result, z in zip(response.json()["results"], logits, strict=True):
            expected = torch.softmax(z + shift, 0)
            actual = {line["index"]: line["probability"] for line in result["predictions"]}
            assert_allclose([actual[i] for i in range(10)], expected.numpy(), **tolerance("served probability"))
            assert_allclose(result["energy"], -torch.logsumexp(z, 0).item(), **tolerance("runtime model"))


def test_explain_returns_what_the_layers_posteriors_are(cbn_server: Server, checkpoint_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from cbn_deploy.checkpoint import load_checkpoint, load_model
    from cbn_deploy.norm import mixture_health
    from tests.checkpoints import digit_pixels

    pixels, _ = digit_pixels(1)
    x = torch.from_numpy(((pixels / 255.0 - 0.5) / 0.25).astype(np.float32)).permute(0, 3, 1, 2)
    health = mixture_health(load_model(load_checkpoint(checkpoint_path)).eval(), [x])
    params = {"model": "digits", "explain": "true"}
    response = cbn_server.client.post("/v1/classify", params=params, files={"image": encode(pixels[0])})
    occupancy = response.json()["results"][0]["occupancy"]
    assert len(occupancy) == len(health) == 19
    for layer, expected in health.items():
        assert_allclose(occupancy[layer], expected.occupancy, **tolerance("served probability"))


def test_explain_needs_posteriors(server: Server) -> None:
    response = server.client.post("/v1/classify", params={"explain": "true"}, files={"image": RED})
    assert response.status_code == 422
    assert "--with-posterior" in response.json()["detail"]


def test_several_models(cbn_server: Server) -> None:
    models = {model["name"]: model for model in cbn_server.client.get("/v1/models").json()["models"]}
    assert set(models) == {"digits", "colours"}
    assert models["colours"]["labels"] == list(COLOURS)
    assert models["colours"]["shot_groups"] == ["many", "medium", "few"]
    assert models["digits"]["architecture"] == "resnet20"
    assert (models["digits"]["components"], models["digits"]["explains"]) == (4, True)
    assert models["digits"]["kernel_path"] == ("portable" if native_library() is None else "fused")
    response = cbn_server.client.post("/v1/classify", params={"model": "colours"}, files={"image": GREEN})
    assert labels(response) == ["green"]
    nameless = cbn_server.client.post("/v1/classify", files={"image": GREEN})
    assert nameless.status_code == 422
    assert "digits" in nameless.json()["detail"]


def test_many_clients_at_once_get_their_own_answers(start_server: Callable[..., Server], colours_path: Path) -> None:
    # Its own limits: so many clients on a busy machine need more than the other server's second to send a request.
    server = start_server(colours_path, "--threads", 1)

    def ask(index: int) -> bool:
        name = COLOURS[index % 3]
        with httpx.Client(base_url=server.url, timeout=60.0, trust_env=False) as client:
            return labels(client.post("/v1/classify", files={"image": FILES[name]})) == [name]

    with ThreadPoolExecutor(max_workers=12) as pool:
        assert all(pool.map(ask, range(48)))
