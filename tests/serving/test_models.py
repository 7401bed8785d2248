"""Model files come, change and go; what answers is always something that has proved itself."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cbn_deploy.errors import ModelFileError, SettingsError
from cbn_deploy.runtime.engine_file import description_path
from cbn_deploy.runtime.self_test import SelfTest, self_test_images
from serving.errors import ApiError
from serving.models import ModelRegistry
from serving.models.files import ModelFile, find_files
from serving.models.loading import load_model
from serving.settings import ModelSource
from tests.onnx_models import SHARPNESS, colour_model, describe, spin_for
from tests.serving.model_folders import Start, put, put_bytes, refresh


def mark(registry: ModelRegistry, name: str = "a", version: str | None = None) -> str:
    """What the labels of the model that answers end with, told by an answer."""
    model = registry.get(name, version)
    pure = np.zeros((1, 3, 8, 8), np.float32)
    pure[:, 1] = 1.0

    async def ask() -> int:
        return int((await model.predict(pure)).prediction.logits[0].argmax())

    label = model.description.class_names[asyncio.run(ask())]
    assert label.startswith("green")
    return label.removeprefix("green")


def states(registry: ModelRegistry) -> dict[str, str]:
    return {f"{state.name} {state.version}": state.state for state in registry.index()}


def reason(registry: ModelRegistry, key: str) -> str:
    return {f"{state.name} {state.version}": state.reason for state in registry.index()}[key]


def refused(call: Callable[[], object], status: int) -> str:
    with pytest.raises(ApiError) as caught:
        call()
    assert caught.value.status == status
    return caught.value.detail


def test_the_layout(repository: Path, start: Start, tmp_path: Path) -> None:
    put(repository / "a" / "1" / "model.onnx", "a1")
    put(repository / "a" / "10" / "model.onnx", "a10")
    put(repository / "a" / "9" / "model.onnx", "a9")
    put(repository / "a.onnx", "hidden by the folder")
    put(repository / "b.onnx", "b")
    put(repository / "b" / "notes" / "model.onnx", "no version")
    put(repository / "b" / "02" / "model.onnx", "no version either")
    put(repository / "sp ace.onnx", "no name")
    (repository / "c" / "1").mkdir(parents=True)
    (repository / "README.md").write_text("no model")
    explicit = put(tmp_path / "b.onnx", "explicit")
    registry = start()
    assert states(registry) == {"a 9": "READY", "a 10": "READY", "b 1": "READY"}
    assert [(model.name, model.version) for model in registry] == [("a", "10"), ("a", "9"), ("b", "1")]
    assert (mark(registry), mark(registry, version="9"), mark(registry, "b")) == ("a10", "a9", "b")
    assert "9" in refused(lambda: registry.get("a", "1"), 404)
    assert "a, b" in refused(lambda: registry.get("x"), 404)
    assert "a, b" in refused(lambda: registry.get(None), 422)
    assert mark(start(models=[str(explicit)]), "b") == "explicit"
    assert states(start(keep_versions=1)) == {"a 10": "READY", "b 1": "READY"}


def test_a_new_version_takes_over_when_its_file_has_settled(repository: Path, start: Start) -> None:
    put(repository / "a" / "1" / "model.onnx", "1")
    registry = start(keep_versions=1)
    old = weakref.ref(registry.get("a"))
    whole = colour_model(description=describe(class_names=("red2", "green2", "blue2"))).SerializeToString()
    new = repository / "a" / "2" / "model.onnx"
    new.parent.mkdir()
    for end in (100, 200, len(whole)):  # a slow copy
        new.write_bytes(whole[:end])
        registry.refresh()
        assert states(registry) == {"a 1": "READY", "a 2": "LOADING"}
        assert mark(registry) == "1"
    registry.refresh()
    assert states(registry) == {"a 2": "READY"}
    assert mark(registry) == "2"
    assert old() is None


def test_what_a_request_holds_lives_until_it_is_done(repository: Path, start: Start) -> None:
    path = put(repository / "a.onnx", "old")
    registry = start()
    held = registry.get("a")
    put(path, "new")
    refresh(registry)
    assert mark(registry) == "new"
    pure = np.ones((1, 3, 8, 8), np.float32)
    assert asyncio.run(held.predict(pure)).prediction.logits.shape == (1, 3)
    gone = weakref.ref(held)
    session = weakref.ref(held.batcher)
    del held
    assert gone() is None
    assert session() is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"not a model at all", "truncated or not an ONNX file"),
        (colour_model().SerializeToString()[:-60], "truncated"),
        (colour_model(broken_weight=float("nan")).SerializeToString(), "finite"),
        (colour_model(batch=1).SerializeToString(), "dynamic batch"),
    ],
)
def test_a_file_that_cannot_be_served_changes_nothing(
    repository: Path, start: Start, content: bytes, says: str
) -> None:
    path = put(repository / "a.onnx", "good")
    put(repository / "b" / "1" / "model.onnx", "b1")
    registry = start()
    put_bytes(path, content)
    put_bytes(repository / "b" / "2" / "model.onnx", content)
    refresh(registry)
    assert states(registry) == {"a 1": "READY", "b 1": "READY", "b 2": "UNAVAILABLE"}
    assert (mark(registry), mark(registry, "b")) == ("good", "b1")
    assert says in reason(registry, "b 2")
    assert "goes on answering" in reason(registry, "a 1")
    assert says in reason(registry, "a 1")
    assert str(repository) not in reason(registry, "b 2") + reason(registry, "a 1"), "clients need not know the paths"
    assert registry.not_ready() == ""
    put(path, "mended")
    put(repository / "b" / "2" / "model.onnx", "b2")
    refresh(registry)
    assert (mark(registry), mark(registry, "b")) == ("mended", "b2")
    assert reason(registry, "a 1") == reason(registry, "b 2") == ""


def posterior_of_another_shape(shape: list[int], keep: list[bool]) -> bytes:
    """A colour model whose posterior is declared (batch, 3, 8, 8) and is something else, which only a run shows."""
    model = colour_model()
    # No tool can tell what Compress leaves, so the declaration stands uncontradicted.
    model.graph.initializer.append(numpy_helper.from_array(np.array(keep), "keep"))
    if shape:
        model.graph.initializer.append(numpy_helper.from_array(np.array(shape), "sizes"))
        model.graph.node.append(helper.make_node("Compress", ["sizes", "keep"], ["shape"]))
        model.graph.node.append(helper.make_node("Reshape", ["images", "shape"], ["posterior.stem"]))
    else:
        model.graph.node.append(helper.make_node("Compress", ["images", "keep"], ["posterior.stem"], axis=0))
    declared = helper.make_tensor_value_info("posterior.stem", TensorProto.FLOAT, ["batch", 3, 8, 8])
    model.graph.output.append(declared)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (posterior_of_another_shape([], [True]), "for 4 images"),
        (posterior_of_another_shape([], [False]), "for 1 images"),
        (posterior_of_another_shape([-1, 3, 64, 9], [True, True, True, False]), "shape (1, 3, 64)"),
        (posterior_of_another_shape([-1, 64, 9], [True, True, False]), "shape (3, 64)"),
        (posterior_of_another_shape([-1, 9], [True, False]), "shape (192,)"),
    ],
    ids=["first image only", "empty", "rank 3", "rank 2", "rank 1"],
)
def test_a_posterior_that_is_none_is_found_out(repository: Path, start: Start, content: bytes, says: str) -> None:
    put(repository / "a" / "1" / "model.onnx", "good")
    put_bytes(repository / "a" / "2" / "model.onnx", content)
    registry = start()
    assert states(registry) == {"a 1": "READY", "a 2": "UNAVAILABLE"}
    assert "gives a posterior of stem" in reason(registry, "a 2")
    assert says in reason(registry, "a 2")


def test_an_engine_has_changed_when_its_description_has(tmp_path: Path) -> None:
    engine = tmp_path / "e.engine"
    beside = description_path(engine)

    def found() -> object:
        return find_files((ModelSource(name="e", path=engine),), None)[("e", 1)].fingerprint

    engine.write_bytes(b"an engine as far as looking at files goes")
    alone = found()
    beside.write_text('{"temperature": null}')
    described = found()
    beside.write_text('{"temperature": 1.5}')
    calibrated = found()
    assert len({alone, described, calibrated}) == 3
    assert found() == calibrated
    engine.write_bytes(b"another engine")
    assert found() != calibrated


def test_a_model_proves_that_it_computes_what_was_exported(repository: Path, start: Start) -> None:
    images = self_test_images(describe().preprocessing)
    logits = SHARPNESS * images.mean(axis=(2, 3), dtype=np.float64)
    right = SelfTest(logits=logits, allowed=np.full(4, 1e-4)).to_dict()
    wrong = SelfTest(logits=logits + 2e-4, allowed=np.full(4, 1e-4)).to_dict()
    put(repository / "a" / "1" / "model.onnx", "right", self_test=right)
    registry = start()
    put(repository / "a" / "2" / "model.onnx", "wrong", self_test=wrong)
    put(repository / "a" / "3" / "model.onnx", "damaged", self_test={"logits": []})
    refresh(registry)
    assert states(registry) == {"a 1": "READY", "a 2": "UNAVAILABLE", "a 3": "UNAVAILABLE"}
    assert "self-test failed" in reason(registry, "a 2")
    assert "self-test is damaged" in reason(registry, "a 3")


def test_the_self_test_sees_a_full_batch_too(repository: Path, start: Start) -> None:
    """A graph that mixes up the images of a batch answers one image rightly."""
    model = colour_model()
    images = self_test_images(describe().preprocessing)
    logits = SHARPNESS * images.mean(axis=(2, 3), dtype=np.float64)
    record = SelfTest(logits=logits, allowed=np.full(4, 1e-4)).to_dict()
    matmul = next(node for node in model.graph.node if node.op_type == "MatMul")
    matmul.output[0] = "unmixed"
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["unmixed", "first"], ["mean_row"], keepdims=1))
    model.graph.node.append(onnx.helper.make_node("Sub", ["unmixed", "mean_row"], ["rest"]))
    model.graph.node.append(onnx.helper.make_node("Sub", ["unmixed", "rest"], ["logits"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "first"))
    onnx.helper.set_model_props(model, describe(self_test=record).to_metadata())
    put_bytes(repository / "a.onnx", model.SerializeToString())
    registry = start()
    assert "self-test failed" in reason(registry, "a 1")


def test_a_file_that_is_gone(repository: Path, start: Start) -> None:
    put(repository / "a" / "1" / "model.onnx", "1")
    put(repository / "a" / "2" / "model.onnx", "2")
    registry = start()
    (repository / "a" / "2" / "model.onnx").unlink()
    registry.refresh()
    assert states(registry) == {"a 1": "READY"}  # a way back to the version before
    assert mark(registry) == "1"
    (repository / "a" / "1" / "model.onnx").unlink()
    registry.refresh()
    assert mark(registry) == "1"  # but the last one stays
    assert "gone" in reason(registry, "a 1")
    assert registry.not_ready() == ""
    put(repository / "a" / "1" / "model.onnx", "back")
    refresh(registry)
    assert mark(registry) == "back"
    assert reason(registry, "a 1") == ""


def test_a_file_with_the_old_times_is_noticed(repository: Path, start: Start) -> None:
    path = put(repository / "a.onnx", "1")
    before = path.stat()
    registry = start()
    put(path, "2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    refresh(registry)
    assert mark(registry) == "2"


def test_the_folder_itself_is_gone(repository: Path, start: Start, tmp_path: Path) -> None:
    put(repository / "a.onnx", "1")
    registry = start()
    away = repository.rename(tmp_path / "away")
    with pytest.raises(OSError, match="models"):
        registry.refresh()
    assert mark(registry) == "1"
    away.rename(repository)
    refresh(registry)
    assert mark(registry) == "1"
    with pytest.raises(SettingsError, match="--model-repository"):
        start(model_repository=tmp_path / "absent")


def test_readiness_asks_for_what_was_there_at_the_start(repository: Path, start: Start) -> None:
    assert "no model" in start().not_ready()
    put(repository / "a.onnx")
    put_bytes(repository / "b.onnx", b"x")
    registry = start()
    assert registry.not_ready().startswith("b: Version 1: ")
    assert "b cannot answer now" in refused(lambda: registry.get("b"), 503)
    put(repository / "b.onnx")
    put_bytes(repository / "late.onnx", b"x")
    refresh(registry)
    assert states(registry)["late 1"] == "UNAVAILABLE"
    assert registry.not_ready() == ""


def test_a_model_that_is_named_must_load(start: Start, tmp_path: Path, repository: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        start(models=[str(tmp_path / "absent.onnx")])


def test_a_load_that_does_not_end_holds_up_neither_unloading_nor_the_end(
    repository: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    put(repository / "a.onnx")
    put(repository / "b.onnx")
    registry = start(timeout=0.01)
    put_bytes(repository / "a.onnx", colour_model(spin=spin_for(0.05)).SerializeToString())
    registry.refresh()  # the next one finds it settled
    load = threading.Thread(target=registry.refresh)
    load.start()
    while not registry._loading.locked():
        time.sleep(0.001)
    assert "still being loaded" in refused(lambda: asyncio.run(registry.load("b")), 503)
    asyncio.run(registry.unload("a"))
    assert states(registry) == {"a 1": "UNAVAILABLE", "b 1": "READY"}
    assert load.is_alive()
    load.join()
    assert states(registry) == {"a 1": "UNAVAILABLE", "b 1": "READY"}, "unloaded is unloaded"

    put_bytes(repository / "b.onnx", colour_model(spin=spin_for(0.05)).SerializeToString())
    registry.refresh()
    load = threading.Thread(target=registry.refresh)
    load.start()
    while not registry._loading.locked():
        time.sleep(0.001)
    registry.close()
    assert load.is_alive()
    load.join()
    assert states(registry) == {}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.fixture
def unexpected(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A file that loading stumbles over in a way that nobody has thought of: what somebody has is refused before."""

    def stumble(file: ModelFile, *arguments: Any) -> Any:
        if file.path.read_bytes() == b"unexpected":
            raise OverflowError(f"cannot convert {file.path}\nto an integer")
        return load_model(file, *arguments)

    monkeypatch.setattr("serving.models.registry.load_model", stumble)
    return b"unexpected"


def test_a_file_that_breaks_the_loader_is_a_broken_file_like_others(
    repository: Path, start: Start, unexpected: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    put_bytes(repository / "a.onnx", unexpected)
    put(repository / "b.onnx", "1")
    registry = start()
    assert states(registry) == {"a 1": "UNAVAILABLE", "b 1": "READY"}
    assert "OverflowError: cannot convert a.onnx to an integer" in reason(registry, "a 1")
    put(repository / "b.onnx", "2")
    put_bytes(repository / "a" / "2" / "model.onnx", unexpected)
    refresh(registry)
    refresh(registry)
    assert mark(registry, "b") == "2"
    told = [record for record in caplog.records if record.exc_info]
    assert len(told) == 2, "once a file"
    with pytest.raises(ModelFileError, match="OverflowError"):
        start(models=[str(put_bytes(repository / "c.onnx", unexpected))])


def test_an_unreadable_folder_of_models_is_no_bug(repository: Path, start: Start) -> None:
    put(repository / "a.onnx", "1")
    registry = start()
    repository.rename(repository.with_name("elsewhere"))
    why = refused(lambda: asyncio.run(registry.load("a")), 503)
    assert "cannot be read" in why
    assert str(repository) not in why
    assert mark(registry) == "1"


def test_loading_and_unloading_by_name(repository: Path, start: Start) -> None:
    path = put(repository / "a.onnx", "1")
    registry = start()

    async def unload_and_load() -> None:
        await registry.unload("a")
        assert states(registry) == {"a 1": "UNAVAILABLE"}
        assert "unloaded" in refused(lambda: registry.get("a"), 404)
        put(path, "2")
        refresh(registry)
        assert states(registry) == {"a 1": "UNAVAILABLE"}  # until somebody asks for it
        await registry.load("a")

    asyncio.run(unload_and_load())
    assert mark(registry) == "2"
    put_bytes(path, b"x")
    assert "goes on answering" in refused(lambda: asyncio.run(registry.load("a")), 422)
    assert mark(registry) == "2"
    for call in (registry.load, registry.unload):
        refused(lambda call=call: asyncio.run(call("x")), 404)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, True),
        ({"host": "0.0.0.0"}, False),  # noqa: S104 - nothing listens
        ({"host": "0.0.0.0", "model_control": True}, True),  # noqa: S104
        ({"host": "0.0.0.0", "api_key_file": "keys"}, True),  # noqa: S104
        ({"model_control": False}, False),
    ],
)
def test_strangers_do_not_unload_models(
    repository: Path, start: Start, settings: dict[str, Any], allowed: bool
) -> None:
    put(repository / "a.onnx")
    registry = start(**settings)
    if allowed:
        asyncio.run(registry.unload("a"))
        assert list(registry) == []
    else:
        assert "--model-control" in refused(lambda: asyncio.run(registry.unload("a")), 403)
        assert "--model-control" in refused(lambda: asyncio.run(registry.load("a")), 403)
        assert states(registry) == {"a 1": "READY"}
