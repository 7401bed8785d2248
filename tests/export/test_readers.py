"""One file, the same answers in onnxruntime, onnx's reference evaluator and OpenVINO; TensorRT-RTX builds it."""

from __future__ import annotations

import numpy as np
import onnx
import openvino
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from cbn_deploy.checkpoint import load_checkpoint, load_model
from cbn_deploy.norm import freeze
from cbn_deploy.runtime.preprocessing import normalize
from export import ExportResult, to_onnx
from tests.export.op_cases import run_onnxruntime
from tests.reference.tolerances import tolerance


@pytest.fixture(scope="module")
def images(checkpoint_path) -> NDArray[np.float32]:
    """Three real digits and one of pure noise."""
    checkpoint = load_checkpoint(checkpoint_path)
    assert checkpoint.sample_images is not None
    real = normalize(checkpoint.sample_images[:3].numpy(), checkpoint.description.preprocessing)
    noise = np.random.default_rng(0).normal(size=(1, *real.shape[1:])).astype(np.float32)
    return np.concatenate([real, noise])


@pytest.fixture(scope="module")
def eager(checkpoint_path, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits of the checkpoint itself, in float64."""
    model = load_model(load_checkpoint(checkpoint_path)).double()
    with torch.inference_mode():
        logits: NDArray[np.float64] = model(torch.from_numpy(images).double()).numpy()
    return logits


def check(logits: NDArray[np.float32], eager: NDArray[np.float64]) -> None:
    assert logits.shape == eager.shape
    scale = np.maximum(1.0, np.abs(eager).max(1, keepdims=True))
    np.testing.assert_allclose(logits / scale, eager / scale, **tolerance("exported logits"))


@pytest.mark.parametrize("batch", [1, 4])
def test_onnxruntime_without_a_library_of_ours(exported_proto, images, eager, batch: int) -> None:
    check(run_onnxruntime(exported_proto, {"images": images[:batch]})[0], eager[:batch])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_reference_evaluator(exported_proto, images, eager, batch: int) -> None:
    check(ReferenceEvaluator(exported_proto).run(None, {"images": images[:batch]})[0], eager[:batch])


def test_openvino_reads_the_flat_file(flat: ExportResult, images, eager) -> None:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(flat.path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({"images": images})
    check(found["logits"], eager)
    expected = dict(
        zip(
            [o.name for o in onnx.load(flat.path).graph.output],
            run_onnxruntime(onnx.load(flat.path), {"images": images}),
            strict=True,
        )
    )
    assert len(expected) == 20
    for name, values in expected.items():
        if name != "logits":
            np.testing.assert_allclose(found[name], values, **tolerance("exported posterior"))


def test_onnxruntime_reads_the_flat_file(flat: ExportResult, images, eager) -> None:
    outputs = run_onnxruntime(onnx.load(flat.path), {"images": images})
    check(outputs[0], eager)
    for posterior in outputs[1:]:
        np.testing.assert_allclose(posterior.sum(1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("with_posterior", [False, True])
def test_tensorrt_rtx_builds_an_engine_without_a_gpu(checkpoint_path, exported_proto, with_posterior: bool) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    model = exported_proto
    if with_posterior:
        network = freeze(load_model(load_checkpoint(checkpoint_path)))
        model = to_onnx(network, torch.zeros(1, 3, 32, 32), with_posterior=True)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert network.num_outputs == (20 if with_posterior else 1)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("images", (1, 3, 32, 32), (8, 3, 32, 32), (32, 3, 32, 32))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    assert engine.nbytes > 100_000
