"""The OpenAPI document is true: schemathesis makes requests from it and checks every answer against it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from serving.app import create_app
from serving.settings import load_settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture(scope="module")
def api(colours_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    key_file = tmp_path_factory.mktemp("keys") / "keys"
    key_file.write_text("secret\n")
    app = create_app(load_settings(models=[str(colours_path)], threads=1, api_key_file=key_file))
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    app.state.services.close()


def check_answers(api: Any, mode: str, examples: int) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import positive_data_acceptance

    # Random bytes fit the schema of an image file, and are no image.
    excluded = [positive_data_acceptance]
    for result in api.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy(generation_mode=GenerationMode[mode]))
        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def check(case: Any) -> None:
            # A field of a form that holds an empty list is not sent: what was to be wrong with the request is gone.
            form = case.body if case.media_type == "multipart/form-data" and isinstance(case.body, dict) else {}
            assume([] not in form.values())
            case.call_and_validate(excluded_checks=excluded, headers={"X-API-Key": "secret"})

        check()


def test_answers_to_documented_requests_are_as_documented(api: Any) -> None:
    check_answers(api, "POSITIVE", examples=15)


def test_answers_to_wrong_requests_are_as_documented(api: Any) -> None:
    check_answers(api.include(path="/v1/classify"), "NEGATIVE", examples=60)
    check_answers(api.include(path_regex=r"^/v2/.*/(infer|load|unload)$", method="POST"), "NEGATIVE", examples=20)


def test_every_operation_documents_its_errors(colours_path: Path) -> None:
    app = create_app(load_settings(models=[str(colours_path)], threads=1))
    paths = app.openapi()["paths"]
    assert set(paths) == {
        "/healthz",
        "/metrics",
        "/v1/classify",
        "/v1/models",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/stats",
        "/v2/repository/index",
        "/v2/repository/models/{model}/load",
        "/v2/repository/models/{model}/unload",
        *(
            f"/v2/models/{{model}}{version}{action}"
            for version in ("", "/versions/{version}")
            for action in ("", "/ready", "/config", "/stats", "/infer")
        ),
    }
    documented = set(paths["/v1/classify"]["post"]["responses"])
    assert documented == {"200", "400", "401", "404", "408", "413", "415", "422", "500", "503", "504"}
    queries = {path for path, operations in paths.items() if _takes_a_query(operations)}
    assert queries == {"/v1/classify"}
    for path, operations in paths.items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                kinds = set(response["content"])
                if status != "200":
                    assert kinds == {"application/json" if path.startswith("/v2") else "application/problem+json"}
    app.state.services.close()


def _takes_a_query(operations: dict[str, Any]) -> bool:
    return any(one["in"] == "query" for operation in operations.values() for one in operation.get("parameters", []))
