"""Where settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cbn_deploy.errors import SettingsError
from serving.settings import load_settings


def test_a_flag_beats_the_environment_which_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(models=["m.onnx"]).max_queue == 64
    monkeypatch.setenv("CBN_MAX_QUEUE", "7")
    assert load_settings(models=["m.onnx"]).max_queue == 7
    assert load_settings(models=["m.onnx"], max_queue=None).max_queue == 7
    assert load_settings(models=["m.onnx"], max_queue=9).max_queue == 9


def test_models_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(models=["runs/birds.onnx", "fish=runs/2/model.onnx"])
    assert [(m.name, m.path) for m in settings.models] == [
        ("birds", Path("runs/birds.onnx")),
        ("fish", Path("runs/2/model.onnx")),
    ]
    monkeypatch.setenv("CBN_MODELS", "a.onnx, b=c.onnx")
    assert [m.name for m in load_settings().models] == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "cbn-serve MODEL.onnx"),
        ({"models": []}, "--model-repository"),
        ({"models": ["a/model.onnx", "b/model.onnx"]}, "NAME=PATH"),
        ({"models": ["sp ace.onnx"]}, "NAME=PATH"),
        ({"models": ["../=x.onnx"]}, "NAME=PATH"),
        ({"models": ["m.onnx"], "port": 70_000}, "--port"),
        ({"models": ["m.onnx"], "max_queue": 0}, "--max-queue"),
        ({"models": ["m.onnx"], "timeout": float("nan")}, "--timeout"),
        ({"models": ["m.onnx"], "timeout": -1}, "--timeout"),
        ({"models": ["m.onnx"], "runtime": "tensorflow"}, "--runtime"),
        ({"models": ["m.onnx"], "max_upload_bytes": "many"}, "CBN_MAX_UPLOAD_BYTES"),
    ],
)
def test_impossible_settings_are_named(given: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as caught:
        load_settings(**given)
    assert "\n" not in str(caught.value)
