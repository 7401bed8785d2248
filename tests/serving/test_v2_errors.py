"""Malformed inference requests of every kind: the right status, one sentence in the protocol's shape, never a 500."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.api.v2.json_bounds import JsonBounds
from tests.onnx_models import colour_model, write_colour_model
from tests.serving.files import RED, bomb_png
from tests.serving.server import Server

INFER = "/v2/models/colours/infer"
LENGTH = "Inference-Header-Content-Length"
MAX_BYTES, MAX_IMAGES = 120_000, 4
SIZE = 3 * 8 * 8


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a real server with small limits."""
    path = write_colour_model(tmp_path_factory.mktemp("v2") / "colours.onnx", colour_model(with_posterior=True))
    limits = ["--max-upload-bytes", MAX_BYTES, "--max-images", MAX_IMAGES, "--max-pixels", 10_000]
    server = Server(path, "--threads", 1, *limits)
    yield server.client
    server.stop()


@pytest.fixture(autouse=True)
def still_right(client: httpx.Client) -> Iterator[None]:
    """Whatever a test has sent, the next good request gets the right answer."""
    yield
    answer = post(client, request(outputs=[{"name": "logits"}]))
    assert answer.json()["outputs"][0]["data"] == pytest.approx([5, 5, 5])


def tensor(**changes: Any) -> dict[str, Any]:
    fields = {"name": "images", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * SIZE, **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def request(**changes: Any) -> dict[str, Any]:
    fields = {"inputs": [tensor()], **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def post(client: httpx.Client, content: Any, binary: bytes | None = None, **headers: str) -> httpx.Response:
    """``binary`` follows the JSON; an underscore in a header's name is a hyphen."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if binary is not None:
        sent = {LENGTH: str(len(text)), **sent}
    return client.post(INFER, content=text + (binary or b""), headers=sent)


def assert_refused(answer: httpx.Response, status: int = 400, says: str = "") -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    sentence = answer.json()["error"]
    assert says in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 400
    assert not any(word in sentence for word in ("Traceback", ".py", "Error("))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"inputs": NaN}',
        b'{"id": "\\ud800"}',
        b"[" * 50_000,
        b'{"inputs":' * 5000,
        b'{"inputs": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_what_is_no_request_object(client: httpx.Client, body: bytes) -> None:
    assert_refused(post(client, body))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inputs": ...}, "no inputs"),
        ({"inputs": []}, "no inputs"),
        ({"inputs": None}, "list of objects"),
        ({"inputs": {}}, "list of objects"),
        ({"inputs": [[]]}, "list of objects"),
        ({"inputs": [tensor(name=...)]}, "no name"),
        ({"inputs": [tensor(name="")]}, "no name"),
        ({"inputs": [tensor(name=5)]}, "no name"),
        ({"inputs": [tensor(name="pixels")]}, "no input 'pixels'"),
        ({"inputs": [tensor(name="x" * 50_000)]}, "no input 'xxx"),
        ({"inputs": [tensor(), tensor()]}, "'images' twice"),
        ({"inputs": [tensor(), tensor(name="image_bytes")]}, "send one of them"),
        ({"inputs": [tensor(datatype=...)]}, "no datatype"),
        ({"inputs": [tensor(datatype="UINT8")]}, "is FP32, not 'UINT8'"),
        ({"inputs": [tensor(datatype="FP16")]}, "is FP32"),
        ({"inputs": [tensor(datatype="fp32")]}, "is FP32"),
        ({"inputs": [tensor(datatype="BYTES")]}, "is FP32"),
        ({"inputs": [tensor(shape=...)]}, "needs a shape"),
        ({"inputs": [tensor(shape="1,3,8,8")]}, "needs a shape"),
        ({"inputs": [tensor(shape=[1.0, 3, 8, 8])]}, "needs a shape"),
        ({"inputs": [tensor(shape=[True, 3, 8, 8])]}, "needs a shape"),
        ({"inputs": [tensor(shape=[-1, 3, 8, 8])]}, "none negative"),
        ({"inputs": [tensor(shape=[1, 3, 8, -8])]}, "none negative"),
        ({"inputs": [tensor(shape=[])]}, "[n, 3, 8, 8]"),
        ({"inputs": [tensor(shape=[3, 8, 8])]}, "[n, 3, 8, 8]"),
        ({"inputs": [tensor(shape=[1, 8, 8, 3])]}, "[n, 3, 8, 8]"),
        ({"inputs": [tensor(shape=[1, 3, 8, 8, 1])]}, "[n, 3, 8, 8]"),
        ({"inputs": [tensor(shape=[2**63, 2**62, 2**61, 2**60])]}, "[n, 3, 8, 8]"),
        ({"inputs": [tensor(shape=[1] * 10_000)]}, "[n, 3, 8, 8]"),
        ({"inputs": [tensor(shape=[0, 3, 8, 8], data=[])]}, "no images"),
        ({"inputs": [tensor(data=...)]}, "either data or binary_data_size"),
        ({"inputs": [tensor(data=[])]}, "0 values"),
        ({"inputs": [tensor(data=[0.5])]}, "1 values"),
        ({"inputs": [tensor(data=[0.5] * (SIZE + 1))]}, "193 values"),
        ({"inputs": [tensor(data=["0.5"] * SIZE)]}, "not numbers"),
        ({"inputs": [tensor(data=[True] * SIZE)]}, "not numbers"),
        ({"inputs": [tensor(data=[None] * SIZE)]}, "not numbers"),
        ({"inputs": [tensor(data=[[0.5] * SIZE])]}, "not nested"),
        ({"inputs": [tensor(data="AAAA")]}, "not a list"),
        ({"inputs": [tensor(data=[1e39] * SIZE)]}, "finite"),
        ({"inputs": [tensor(parameters=[])]}, "not an object"),
        ({"inputs": [tensor(parameters={"binary_data_size": "768"})]}, "binary_data_size"),
        ({"inputs": [tensor(parameters={"binary_data_size": -1})]}, "binary_data_size"),
        ({"inputs": [tensor(parameters={"binary_data_size": 1.5})]}, "binary_data_size"),
        ({"inputs": [tensor(parameters={"binary_data_size": True})]}, "binary_data_size"),
        ({"inputs": [tensor(parameters={"binary_data_size": 0})]}, "either data or binary_data_size"),
        ({"inputs": [tensor(parameters={"binary_data_size": 2**63})]}, "only 0 follow"),
        ({"inputs": [tensor(parameters={"shared_memory_region": "r"})]}, "shared memory"),
        ({"inputs": [tensor(name="image_bytes", datatype="BYTES", shape=[1], data=["text"])]}, "binary"),
        ({"id": 5}, "id must be text"),
        ({"parameters": "none"}, "not an object"),
        ({"parameters": {"timeout": -1}}, "timeout"),
        ({"parameters": {"timeout": 0.5}}, "timeout"),
        ({"parameters": {"timeout": "1s"}}, "timeout"),
        ({"parameters": {"timeout": 9999}}, "allow 10000"),
        ({"parameters": {"priority": -1}}, "priority"),
        ({"parameters": {"sequence_id": 3}}, "sequence_id"),
        ({"parameters": {"sequence_id": "a"}}, "sequence_id"),
        ({"parameters": {"sequence_start": True}}, "sequence_id"),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output"),
        ({"outputs": "logits"}, "list of objects"),
        ({"outputs": [{"name": "probabilities"}]}, "no output 'probabilities'"),
        ({"outputs": [{"name": "logits"}, {"name": "logits"}]}, "'logits' twice"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": -1}}]}, "classification"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": "3"}}]}, "classification"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": True}}]}, "classification"),
        ({"outputs": [{"name": "posterior.stem", "parameters": {"classification": 1}}]}, "not to"),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": "yes"}}]}, "binary_data"),
        ({"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
    ],
)
def test_wrong_requests(client: httpx.Client, changes: dict[str, Any], says: str) -> None:
    assert_refused(post(client, request(**changes)), 400, says)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"parameters": None},
        {"parameters": {"timeout": 0, "priority": 0, "sequence_id": 0, "sequence_start": False, "custom": [1]}},
        {"outputs": []},
        {"outputs": None},
        {"model_name": "colours", "unknown": {}},
        {"inputs": [tensor(data=np.full((1, 3, 8, 8), 0.5).tolist())]},
        {"inputs": [tensor(data=[1] * SIZE)]},
        {"outputs": [{"name": "logits", "parameters": {"classification": 0}}]},
    ],
)
def test_unusual_but_right_requests(client: httpx.Client, changes: dict[str, Any]) -> None:
    answer = post(client, request(**changes))
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["shape"] == [1, 3]
    assert answer.json().get("id") == changes.get("id")


def test_too_many_images(client: httpx.Client) -> None:
    wide = tensor(shape=[2**64 - 1, 3, 8, 8])
    assert_refused(post(client, request(inputs=[wide])), 413, "at most 4")
    five = tensor(shape=[5, 3, 8, 8], data=..., parameters={"binary_data_size": 5 * SIZE * 4})
    assert_refused(post(client, request(inputs=[five]), bytes(5 * SIZE * 4)), 413, "at most 4")


def test_too_large_a_body(client: httpx.Client) -> None:
    assert_refused(post(client, b" " * (MAX_BYTES + 1)), 413, "120000 bytes")


# Of JSON: 64 a number, and 64 KiB for all else.
MAX_JSON_BYTES = MAX_IMAGES * SIZE * 64 + 65_536


def test_more_json_than_the_images_of_the_model_can_need(client: httpx.Client) -> None:
    padded = json.dumps(request()).encode().ljust(MAX_JSON_BYTES + 1)
    assert len(padded) < MAX_BYTES
    assert_refused(post(client, padded), 413, f"{MAX_JSON_BYTES} bytes of JSON")
    assert_refused(post(client, padded, b""), 413, f"{MAX_JSON_BYTES} bytes of JSON")
    assert_refused(post(client, gzip.compress(padded), Content_Encoding="gzip"), 413, f"{MAX_JSON_BYTES} bytes when")
    assert post(client, padded[:-1]).status_code == 200
    binary = json.dumps(BINARY).encode().ljust(65_537)
    assert_refused(post(client, binary, ZEROS), 413, "65536 bytes of JSON")
    assert post(client, binary[:-1], ZEROS).status_code == 200


@pytest.mark.parametrize("filler", [b"[],", b"{},"])
def test_lists_without_end_are_refused_before_they_are_parsed(client: httpx.Client, filler: bytes) -> None:
    """Twenty thousand of them in some bytes of gzip."""
    body = b'{"inputs":[{"data":[' + filler * 20_000 + b"0]}]}"
    assert_refused(post(client, gzip.compress(body), Content_Encoding="gzip"), 400, "lists and objects")


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 4, 20), (3, 20, 4)])
@pytest.mark.parametrize("indent", [None, 4])
def test_any_way_to_write_the_largest_batch_is_within_the_bounds(shape: tuple[int, int, int], indent: int) -> None:
    images = np.full((32, *shape), -2.2250738585072014e-308)
    for data in (images, images.ravel()):
        entry = tensor(shape=images.shape, data=data.tolist())
        text = json.dumps(request(inputs=[entry]), indent=indent).encode()
        JsonBounds.of(shape, 32).check(memoryview(text), len(text))


BINARY = request(inputs=[tensor(data=..., parameters={"binary_data_size": SIZE * 4})])
ZEROS = bytes(SIZE * 4)


@pytest.mark.parametrize("length", ["", "-1", "1.5", "abc", "0x10", "٣", "1e3", "9" * 5000, "99999", "+5"])
def test_wrong_header_lengths(client: httpx.Client, length: str) -> None:
    answer = client.post(
        INFER, content=json.dumps(BINARY).encode() + ZEROS, headers=[(LENGTH.encode(), length.encode())]
    )
    assert_refused(answer, 400)


@pytest.mark.parametrize("shift", [-1, 1, 10])
def test_a_header_length_beside_the_jsons_end(client: httpx.Client, shift: int) -> None:
    length = str(len(json.dumps(BINARY)) + shift)
    assert_refused(post(client, BINARY, ZEROS, Inference_Header_Content_Length=length))


def test_a_body_without_json_is_the_tensor(client: httpx.Client) -> None:
    answer = client.post(INFER, content=np.full(SIZE, 0.5, dtype="<f4").tobytes(), headers={LENGTH: "0"})
    length = int(answer.headers[LENGTH])
    described = json.loads(answer.content[:length])
    assert [output["shape"] for output in described["outputs"]] == [[1, 3], [1, 3, 8, 8]]
    assert np.frombuffer(answer.content[length : length + 12], "<f4").tolist() == pytest.approx([5, 5, 5])
    assert_refused(client.post(INFER, content=ZEROS[1:], headers={LENGTH: "0"}), 400, "takes 768")
    assert_refused(client.post(INFER, content=ZEROS + ZEROS, headers={LENGTH: "0"}), 400, "takes 768")
    assert_refused(client.post(INFER, headers={LENGTH: "0"}), 400, "JSON")


def test_binary_data_of_a_wrong_size(client: httpx.Client) -> None:
    assert_refused(post(client, BINARY), 400, "only 0 follow")
    assert_refused(post(client, BINARY, ZEROS[:-1]), 400, "only 767 follow")
    assert_refused(post(client, BINARY, ZEROS + b"x"), 400, "belong to no input")
    assert_refused(post(client, request(), ZEROS), 400, "belong to no input")
    short = request(inputs=[tensor(data=..., parameters={"binary_data_size": 764})])
    assert_refused(post(client, short, ZEROS[:-4]), 400, "takes 768")
    both = request(inputs=[tensor(parameters={"binary_data_size": SIZE * 4})])
    assert_refused(post(client, both, ZEROS), 400, "either data or binary_data_size")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(client: httpx.Client, value: float) -> None:
    images = np.full(SIZE, 0.5, dtype="<f4")
    images[100] = value
    assert_refused(post(client, BINARY, images.tobytes()), 400, "finite")


def test_an_answer_that_is_not_finite_is_null_in_json_and_itself_in_binary(client: httpx.Client) -> None:
    images = np.full(SIZE, 3e38, dtype="<f4").tobytes()
    answer = post(client, {**BINARY, "outputs": [{"name": "logits"}]}, images)
    assert answer.json()["outputs"][0]["data"] == [None] * 3
    binary = {**BINARY, "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    answer = post(client, binary, images)
    assert not np.isfinite(np.frombuffer(answer.content[int(answer.headers[LENGTH]) :], "<f4")).any()


def encoded(*files: bytes, count: int | None = None) -> tuple[dict[str, Any], bytes]:
    data = b"".join(struct.pack("<I", len(file)) + file for file in files)
    shape = [len(files) if count is None else count]
    entry = {"name": "image_bytes", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(data)}}
    return {"inputs": [entry]}, data


@pytest.mark.parametrize(
    ("files", "count", "status", "says"),
    [
        ([b""], None, 422, "0 bytes"),
        ([b"not an image"], None, 415, "JPEG"),
        ([RED, RED[:200]], None, 422, "Image 2 of 2"),
        ([bomb_png(50_000, 50_000)], None, 413, "pixels"),
        ([RED], 2, 400, "1 elements"),
        ([RED, RED], 1, 400, "more than the 1 elements"),
        ([], 0, 400, "no images"),
        ([b"x"] * 5, None, 413, "at most 4"),
    ],
)
def test_wrong_image_files(client: httpx.Client, files: list[bytes], count: int | None, status: int, says: str) -> None:
    assert_refused(post(client, *encoded(*files, count=count)), status, says)


def test_damaged_lengths_of_image_files(client: httpx.Client) -> None:
    content, data = encoded(RED)
    for wrong in (b"\xff" * 4 + data[4:], bytes(4) + data[4:]):
        assert_refused(post(client, content, wrong), 400)


def test_packed_bodies(client: httpx.Client) -> None:
    body = json.dumps(request()).encode()
    assert post(client, gzip.compress(body), Content_Encoding="gzip").status_code == 200
    assert post(client, zlib.compress(body), Content_Encoding="deflate").status_code == 200
    assert_refused(post(client, body, Content_Encoding="gzip"), 400, "not valid gzip")
    assert_refused(post(client, gzip.compress(body)[:-20], Content_Encoding="gzip"), 400, "cut off")
    assert_refused(post(client, body, Content_Encoding="br"), 415, "'br'")
    bomb = gzip.compress(bytes(20_000_000))
    assert len(bomb) < MAX_BYTES
    assert_refused(post(client, bomb, Content_Encoding="gzip"), 413, "unpacked")


def test_a_packed_answer_keeps_its_header_length(client: httpx.Client) -> None:
    content = request(parameters={"binary_data_output": True})
    for accept, coding in (("gzip", "gzip"), ("deflate", "deflate"), ("identity", None)):
        answer = post(client, content, Accept_Encoding=accept)
        assert answer.headers.get("content-encoding") == coding
        length = int(answer.headers[LENGTH])
        described = json.loads(answer.content[:length])
        assert sum(entry["parameters"]["binary_data_size"] for entry in described["outputs"]) == (
            len(answer.content) - length
        )


@pytest.mark.parametrize("path", ["absent/infer", "colours/versions/2/infer", "colours/versions/x/infer", "%00/infer"])
def test_an_unknown_model_or_version(client: httpx.Client, path: str) -> None:
    assert_refused(client.post(f"/v2/models/{path}", json=request()), 404)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"parameters": 5}', b'{"ready": "yes"}', b'{"ready": 1}', b"x" * 70_000]
)
def test_wrong_repository_requests(client: httpx.Client, body: bytes) -> None:
    paths = ["index"] if b"ready" in body else ["models/colours/load", "models/colours/unload"]
    for path in paths:
        status = 413 if len(body) > 65536 else 400
        assert_refused(client.post(f"/v2/repository/{path}", content=body), status)


# Requests that are nearly right: each part is right, or one of the wrong values that break parsers.
numbers = st.sampled_from([0, 1, 3, 4, 8, 768, -1, 2**31, 2**63, 2**64 - 1, 1.5, 1e308, True, None, "8", [], {}])
near_shape = st.one_of(st.just([1, 3, 8, 8]), st.lists(numbers, max_size=5), numbers)
near_data = st.one_of(
    st.just([0.5] * SIZE), st.just(...), st.lists(numbers, max_size=5), st.just([[0.5] * 96] * 2), numbers
)
near_parameters = st.one_of(
    st.just(...),
    numbers,
    st.fixed_dictionaries(
        {},
        optional={
            name: numbers
            for name in (
                "binary_data_size",
                "binary_data",
                "binary_data_output",
                "classification",
                "timeout",
                "priority",
            )
        },
    ),
)
near_name = st.sampled_from(["images", "image_bytes", "logits", "posterior.stem", "", None, 5, "\x00"])
near_tensor = st.one_of(
    st.builds(
        tensor,
        name=near_name,
        shape=near_shape,
        data=near_data,
        datatype=st.sampled_from(["FP32", "BYTES", "INT8", "", None, 7]),
        parameters=near_parameters,
    ),
    numbers,
)
near_output = st.one_of(
    st.builds(lambda n, p: {"name": n, "parameters": p if p is not ... else {}}, near_name, near_parameters), numbers
)
near_request = st.builds(
    request,
    id=st.one_of(st.just(...), numbers, st.text(max_size=5)),
    inputs=st.one_of(st.lists(near_tensor, max_size=3), numbers),
    outputs=st.one_of(st.just(...), st.lists(near_output, max_size=3), numbers),
    parameters=near_parameters,
)
near_length = st.one_of(st.none(), st.integers(-5, 5), st.sampled_from(["", "x", "-1", "99999999999999999999"]))
near_coding = st.sampled_from([None, None, None, "gzip", "deflate", "identity", "br"])


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    content=near_request, binary=st.binary(max_size=900), length=near_length, packed=near_coding, claimed=near_coding
)
def test_no_request_is_a_fault_of_the_server(
    client: httpx.Client, content: Any, binary: bytes, length: Any, packed: str | None, claimed: str | None
) -> None:
    text = json.dumps(content).encode()
    body = text + binary
    headers = {}
    if length is not None:
        headers[LENGTH] = str(len(text) + length) if isinstance(length, int) else length
    if claimed:
        headers["Content-Encoding"] = claimed
    if packed in ("gzip", "deflate"):
        body = gzip.compress(body) if packed == "gzip" else zlib.compress(body)
    answer = client.post(INFER, content=body, headers=headers)
    if answer.status_code != 200:
        assert answer.status_code in (400, 413, 415, 422, 504)
        assert_refused(answer, answer.status_code)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(position=st.integers(0, 1200), change=st.binary(min_size=0, max_size=3), cut=st.integers(0, 3))
def test_a_damaged_binary_request_is_answered_or_refused(
    client: httpx.Client, position: int, change: bytes, cut: int
) -> None:
    whole = json.dumps(BINARY).encode() + np.full(SIZE, 0.5, dtype="<f4").tobytes()
    body = whole[:position] + change + whole[position + cut :]
    answer = client.post(INFER, content=body, headers={LENGTH: str(len(json.dumps(BINARY)))})
    if answer.status_code != 200:
        assert_refused(answer, answer.status_code)
        assert answer.status_code < 500
