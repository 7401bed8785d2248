"""Hostile requests, endlessly: damaged images, forms, tensors and HTTP. None may be answered with 500, or end the
server, or make it answer the next good request wrongly."""

from __future__ import annotations

import http.client
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from load_client import http_request
from soak_client import exchange
from soak_server import Soak, start

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.hostile_images import damaged_images

__all__ = ["fuzz"]

_CHECK_EVERY = 500
_BREAKS_S = 0.5
_BOUNDARY = b"fuzz"


def fuzz(soak: Soak, count: int, deadline: float, before: dict[str, Any]) -> dict[str, Any]:
    """Send what is left of ``count`` requests; statuses of the runs before are added up."""
    statuses = Counter({str(status): number for status, number in before.get("statuses", {}).items()})
    done = sum(statuses.values())
    # A head or body that does not end is closed sooner, so that the run gets on.
    server = start(soak, "--upload-timeout", str(_BREAKS_S), "--max-pixels", "4000000")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    wrong = int(before.get("wrong_good_answers", 0))
    good_ones = int(before.get("good_answers", 0))
    try:
        for content in _requests(soak, seed=done):
            if done >= count or time.monotonic() > deadline:
                break
            statuses[_send(connection, content)] += 1
            done += 1
            if done % _CHECK_EVERY == 0:
                question = soak.questions[done // _CHECK_EVERY % len(soak.questions)]
                status, body = exchange(connection, question.call.content)
                good_ones += 1
                wrong += status != 200 or not question.is_answered_by(body)
        code = server.terminate()
    finally:
        server.kill()
    log = (soak.folder / "server.log").read_bytes()
    errors = before.get("errors_logged", 0) + log.count(b'"level":"error"') + log.count(b'"level":"critical"')
    server_faults = sum(number for status, number in statuses.items() if status.startswith("5"))
    return {
        "good": done >= count and not (server_faults or wrong or errors) and code == 0,
        "requests": done,
        "asked_for": count,
        "statuses": dict(sorted(statuses.items())),
        "server_faults": server_faults,
        "errors_logged": errors,
        "good_answers": good_ones,
        "wrong_good_answers": wrong,
    }


def _send(connection: http.client.HTTPConnection, content: bytes) -> str:
    """The status; "closed": the server ended the connection without one."""
    try:
        return str(exchange(connection, content)[0])
    except (OSError, http.client.HTTPException):
        connection.close()
        return "closed"


def _requests(soak: Soak, seed: int) -> Iterator[bytes]:
    """Endless. Of a hundred 60 are damaged images, 36 other damages, and a few do not end."""
    source = random.Random(seed)
    images = damaged_images(seed)
    whole = [question.call.content for question in soak.questions]
    while True:
        kind = source.randrange(100)
        if kind < 50:
            yield http_request("/v1/classify", next(images), source.choice(("image/png", "image/jpeg")))
        elif kind < 60:
            yield http_request(
                "/v1/classify", _form(next(images)), f"multipart/form-data; boundary={_BOUNDARY.decode()}"
            )
        elif kind < 80:
            yield _with_right_length(source.choice(whole), source)
        elif kind < 92:
            yield http_request("/v2/models/soak/infer", _damaged_json(source), "application/json")
        elif kind < 99:
            yield http_request(_path(source), source.randbytes(20), "image/png")
        else:
            yield _damage(source.choice(whole), source)  # its length may be wrong: the server waits, then ends it


def _form(image: bytes) -> bytes:
    head = b'--fuzz\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    return head + image + b"\r\n--fuzz--\r\n"


def _with_right_length(content: bytes, source: random.Random) -> bytes:
    """A good request whose body is damaged and whose length says so."""
    head, _, body = content.partition(b"\r\n\r\n")
    body = _damage(body, source)
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def _damage(content: bytes, source: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 8))):
        place = source.randrange(len(damaged) + 1)
        match source.randrange(4):
            case 0:
                damaged[place : place + 1] = source.randbytes(1)
            case 1:
                del damaged[place : place + source.randrange(1, 32)]
            case 2:
                damaged[place:place] = damaged[place : place + source.randrange(1, 32)]
            case _:
                damaged[place:place] = source.choice((b"\r\n", b"\0", b"--fuzz", b'"', b"\xff\xfe", b"9" * 20))
    return bytes(damaged)


def _damaged_json(source: random.Random) -> bytes:
    values = ("-1", "1e400", "null", '"x"', "[]", "{}", "true", "18446744073709551616", '"\\ud800"', "[" * 200)
    tensor = (
        '{"inputs":[{"name":"images","datatype":"FP32","shape":[1,3,2,2],"data":[1,2,3]}],"id":"a","parameters":{}}'
    )
    text = tensor.replace(
        source.choice(('"images"', '"FP32"', "[1,3,2,2]", "[1,2,3]", '"a"', "{}", "3")), source.choice(values)
    )
    return _damage(text.encode(), source) if source.random() < 0.5 else text.encode(errors="replace")


def _path(source: random.Random) -> str:
    query = source.choice(("top_k", "prior", "reject", "timeout", "model", "explain", "version", "nothing"))
    value = source.choice(
        ("-1", "%00", "%ff", "NaN", "1e999", "9" * 400, "%7B%22digit 1%22:1%7D", "true", "estimate", "")
    )
    start = source.choice(
        ("/v1/classify", "/v2/models/soak/infer", "/v2/models/%2e%2e/infer", "/v1/models", "//", "/%zz")
    )
    return f"{start}?{query}={value.replace(' ', '%20')}"
