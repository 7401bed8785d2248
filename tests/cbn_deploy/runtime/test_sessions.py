"""What every Session promises, for every runtime; and what each runtime does with files that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx.inliner
import pytest
from numpy.testing import assert_allclose
from onnx import TensorProto, helper

from cbn_deploy.errors import InputError, ModelFileError
from cbn_deploy.runtime import Session
from cbn_deploy.runtime.factory import RuntimeName, open_session
from tests.onnx_models import SHARPNESS, SIZE, colour_model, describe, write_colour_model
from tests.reference.tolerances import tolerance

ONNX_RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")


@pytest.fixture(params=ONNX_RUNTIMES)
def session(request: pytest.FixtureRequest, colour_path: Path) -> Iterator[Session]:
    with open_session(colour_path, request.param, threads=1) as opened:
        yield opened


def images(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_logits_and_posteriors_are_right(session: Session, batch: int) -> None:
    x = images(batch)
    prediction = session.run(x)
    exact = x.astype(np.float64)
    assert_allclose(prediction.logits, exact.mean(axis=(2, 3)) * SHARPNESS, **tolerance("runtime float32"))
    assert prediction.logits.dtype == np.float32
    weights = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    assert_allclose(prediction.posteriors["stem"], weights, **tolerance("runtime float32"))
    assert set(prediction.posteriors) == {"stem"}


def test_runs_from_many_threads_do_not_mix(session: Session) -> None:
    batches = [images(1 + seed % 3, seed) for seed in range(24)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(session.run, batches))
    for batch, answer in zip(batches, answers, strict=True):
        assert_allclose(answer.logits, batch.mean(axis=(2, 3)) * SHARPNESS, **tolerance("runtime float32"))


def test_answers_outlive_the_next_run(session: Session) -> None:
    first = session.run(images(2, seed=1)).logits
    kept = first.copy()
    session.run(images(2, seed=2))
    assert (first == kept).all()


def test_wrong_arrays_are_refused(session: Session) -> None:
    with pytest.raises(InputError, match="float32"):
        session.run(images(1).astype(np.float64))  # type: ignore[arg-type]
    for wrong in (images(1)[0], images(1)[:, :, :-1], images(1)[:0], np.zeros((1, 1, SIZE, SIZE), np.float32)):
        with pytest.raises(InputError, match="shape"):
            session.run(wrong)


def test_a_closed_session_says_so(colour_path: Path, checkpoint_path: Path) -> None:
    for path, runtime in ((colour_path, "onnxruntime"), (colour_path, "openvino"), (checkpoint_path, "torch")):
        session = open_session(path, runtime)  # type: ignore[arg-type]
        size = session.description.preprocessing.height
        session.close()
        session.close()
        with pytest.raises(InputError, match="closed"):
            session.run(np.zeros((1, 3, size, size), np.float32))


def test_info_is_honest(session: Session, colour_path: Path) -> None:
    info = session.describe()
    module = __import__(info.runtime)
    assert info.version == module.__version__
    assert (info.kernel_path, info.device, info.file) == ("portable", "cpu", colour_path.name)


@pytest.mark.parametrize("runtime", ONNX_RUNTIMES)
@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (colour_model(input_name="pixels"), "one input 'images'"),
        (colour_model(batch=1), "dynamic batch"),
        (colour_model(size=SIZE * 2), "'images' must be float32 of shape"),
        (colour_model(classes=2), "'logits' must be float32 of shape"),
        (colour_model(description=describe(class_names=("a",), class_counts=(1,), training_prior=(1.0,))), "'logits'"),
    ],
    ids=["input name", "fixed batch", "size", "classes", "labels"],
)
def test_a_graph_that_contradicts_its_metadata_is_refused(
    tmp_path: Path, runtime: RuntimeName, model: onnx.ModelProto, complaint: str
) -> None:
    path = write_colour_model(tmp_path / "model.onnx", model)
    with pytest.raises(ModelFileError, match=complaint):
        open_session(path, runtime)


def posterior_model(op: str, dtype: int, shape: list[str | int] | None, **attributes: object) -> onnx.ModelProto:
    """A colour model with a posterior of its own kind: ``op`` of the images."""
    model = onnx.inliner.inline_local_functions(colour_model())
    model.graph.node.append(helper.make_node(op, ["images"], ["posterior.stem"], **attributes))
    model.graph.output.append(helper.make_tensor_value_info("posterior.stem", dtype, shape))
    return model


@pytest.mark.parametrize("runtime", ONNX_RUNTIMES)
@pytest.mark.parametrize(
    "model",
    [
        posterior_model("Cast", TensorProto.INT64, ["batch", 3, SIZE, SIZE], to=TensorProto.INT64),
        posterior_model("Cast", TensorProto.STRING, ["batch", 3, SIZE, SIZE], to=TensorProto.STRING),
        posterior_model("ReduceMean", TensorProto.FLOAT, None, keepdims=0),
        posterior_model("Flatten", TensorProto.FLOAT, ["batch", 3 * SIZE * SIZE]),
        posterior_model("ReduceMean", TensorProto.FLOAT, [1, 1, 1, 1]),
        posterior_model("Squeeze", TensorProto.FLOAT, None),
    ],
    ids=["int64", "string", "one number", "rank 2", "fixed batch", "any rank"],
)
def test_a_posterior_that_is_none_is_refused(tmp_path: Path, runtime: RuntimeName, model: onnx.ModelProto) -> None:
    path = write_colour_model(tmp_path / "model.onnx", model)
    with pytest.raises(ModelFileError, match=r"'posterior\.stem' must be float32|OpenVINO cannot load"):
        open_session(path, runtime, threads=1)


@pytest.mark.parametrize("runtime", ONNX_RUNTIMES)
def test_a_graph_with_an_unknown_op_is_one_sentence(
    tmp_path: Path, runtime: RuntimeName, capfd: pytest.CaptureFixture[str]
) -> None:
    model = colour_model()
    del model.functions[:]
    path = write_colour_model(tmp_path / "model.onnx", model)
    with pytest.raises(ModelFileError, match="cannot load") as caught:
        open_session(path, runtime)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("runtime", ONNX_RUNTIMES)
def test_wrong_dtype_is_refused(tmp_path: Path, runtime: RuntimeName) -> None:
    model = onnx.inliner.inline_local_functions(colour_model())
    model.graph.node.append(helper.make_node("Cast", ["logits"], ["half"], to=TensorProto.FLOAT16))
    model.graph.node[-1].output[0] = "logits16"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits16", TensorProto.FLOAT16, ["batch", 3]))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [{"logits": "logits32", "logits16": "logits"}.get(name, name) for name in names]
    model.graph.output[0].name = "logits"
    with pytest.raises(ModelFileError, match="not float32"):
        open_session(write_colour_model(tmp_path / "half.onnx", model), runtime)


def test_torch_gives_the_checkpoints_answers(checkpoint_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from cbn_deploy.checkpoint import load_checkpoint, load_model

    x = np.random.default_rng(3).normal(size=(3, 3, 32, 32)).astype(np.float32)
    x.flags.writeable = False
    model = load_model(load_checkpoint(checkpoint_path)).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(x.copy())).numpy()
    with open_session(checkpoint_path) as session:
        prediction = session.run(x)
        info = session.describe()
    assert_allclose(prediction.logits, expected, **tolerance("runtime model"))
    assert (info.runtime, info.kernel_path, info.threads) == ("torch", "eager", torch.get_num_threads())


def test_torch_returns_posteriors_when_asked_and_keeps_threads_apart(checkpoint_path: Path) -> None:
    side = 32
    batches = [
        np.random.default_rng(seed).normal(size=(1 + seed % 3, 3, side, side)).astype(np.float32) for seed in range(6)
    ]
    with open_session(checkpoint_path, threads=1) as plain:
        assert plain.run(batches[0]).posteriors == {}
        logits = plain.run(batches[0]).logits
    with open_session(checkpoint_path, threads=1, with_posteriors=True) as session:
        alone = [session.run(batch) for batch in batches]
        with ThreadPoolExecutor(max_workers=3) as pool:
            together = list(pool.map(session.run, batches))
    assert_allclose(alone[0].logits, logits, **tolerance("runtime float32"))
    assert next(iter(alone[0].posteriors)) == "bn1"
    assert len(alone[0].posteriors) == 19
    for batch, one, other in zip(batches, alone, together, strict=True):
        assert one.posteriors["bn1"].shape == (len(batch), 4, side, side)
        for layer, posterior in one.posteriors.items():
            assert_allclose(posterior.sum(axis=1), 1.0, **tolerance("runtime float32"))
            assert_allclose(other.posteriors[layer], posterior, **tolerance("runtime float32"))


def test_openvino_without_onnx_asks_for_a_flat_file(colour_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModelFileError, match="--inline"):
        open_session(colour_path, "openvino")
