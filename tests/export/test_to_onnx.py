"""The exported graph itself: names, forms, dynamic batch, what it must not carry."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from cbn_deploy.models import ArchitectureConfig, create_model
from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig, freeze
from export import to_onnx
from export.function_body import OPSET
from export.op import ADD_RELU, DOMAIN, PLAIN, RELU
from export.to_onnx import IR_VERSION
from tests.export.op_cases import run_onnxruntime
from tests.reference.tolerances import tolerance


class Shared(nn.Module):
    """One layer used twice, one whose posterior is read: what a user's own network may do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = CompoundBatchNorm2d(3, NormConfig(components=3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(x)).mean((2, 3))


class Posterior(nn.Module):
    """Calls the op that returns the posterior too."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = freeze(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.layer
        y, w = torch.ops.cbn.compound_batch_norm_posterior(
            x, f.tau, f.mean, f.var, f.scale, f.bias, f.epsilon, f.density_scale
        )
        return torch.cat([y, w], 1).mean((2, 3))


def test_forms_names_and_versions(exported_proto: onnx.ModelProto) -> None:
    nodes = [node for node in exported_proto.graph.node if node.domain == DOMAIN]
    layers = ["bn1", *(f"layer{s}.{b}.bn{n}" for s in (1, 2, 3) for b in range(3) for n in (1, 2))]
    assert [node.name for node in nodes] == layers
    for node in nodes:
        assert node.op_type == (ADD_RELU if node.name.endswith("bn2") else RELU).op_type
    assert not [node for node in exported_proto.graph.node if node.op_type in ("Relu", "Add", "BatchNormalization")]
    assert {function.name for function in exported_proto.functions} == {RELU.op_type, ADD_RELU.op_type}
    assert {(o.domain, o.version) for o in exported_proto.opset_import} == {("", OPSET), (DOMAIN, 1)}
    assert exported_proto.ir_version == IR_VERSION


def test_input_output_and_dynamic_batch(exported_proto: onnx.ModelProto) -> None:
    (images,), (logits,) = exported_proto.graph.input, exported_proto.graph.output
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["batch", 10]
    assert (images.name, logits.name) == ("images", "logits")


def test_the_file_is_strictly_valid(exported_proto: onnx.ModelProto) -> None:
    onnx.checker.check_model(exported_proto, full_check=True)
    onnx.shape_inference.infer_shapes(exported_proto, check_type=True, strict_mode=True, data_prop=True)


def test_the_file_says_nothing_of_the_machine_that_made_it(exported_proto: onnx.ModelProto, checkpoint_path) -> None:
    content = exported_proto.SerializeToString()
    assert str(checkpoint_path.parent).encode() not in content
    assert b"site-packages" not in content
    assert b".py" not in content
    assert not any(node.metadata_props or node.doc_string for node in exported_proto.graph.node)


def test_the_batch_norm_twin_has_none_of_our_ops() -> None:
    torch.manual_seed(0)
    twin = create_model(ArchitectureConfig(name="resnet20-bn", num_classes=7)).eval()
    model = to_onnx(twin, torch.zeros(1, 3, 16, 20), with_posterior=True)
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    x = torch.randn(3, 3, 16, 20)
    with torch.inference_mode():
        expected = twin(x).numpy()
    np.testing.assert_allclose(
        run_onnxruntime(model, {"images": x.numpy()})[0], expected, **tolerance("exported logits")
    )


@pytest.mark.parametrize("density_scale", ["joint", "mean_channels", 0.3])
@pytest.mark.parametrize("size", [(1, 1), (5, 2)])
def test_a_layer_used_twice(density_scale: str | float, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = Shared()
    model.layer.config = NormConfig(components=3, density_scale=density_scale)
    model.layer.density_scale = model.layer.config.density_factor(3)
    frozen = freeze(model)
    exported = to_onnx(frozen, torch.zeros(1, 3, *size), with_posterior=True)
    assert [node.name for node in exported.graph.node if node.domain == DOMAIN] == ["layer", "layer#2"]
    x = torch.randn(4, 3, *size)
    outputs = run_onnxruntime(exported, {"images": x.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(outputs[0], frozen(x).numpy(), **tolerance("exported logits"))
    assert outputs[2].shape == (4, 3, *size)


def test_an_op_whose_posterior_the_network_reads() -> None:
    torch.manual_seed(0)
    model = Posterior(CompoundBatchNorm2d(3, NormConfig(components=2))).eval()
    exported = to_onnx(model, torch.zeros(1, 3, 4, 4))
    (node,) = [node for node in exported.graph.node if node.domain == DOMAIN]
    assert (node.op_type, len(node.output)) == (PLAIN.op_type, 2)
    x = torch.randn(2, 3, 4, 4)
    with torch.inference_mode():
        expected = model(x).numpy()
    np.testing.assert_allclose(
        run_onnxruntime(exported, {"images": x.numpy()})[0], expected, **tolerance("exported logits")
    )


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        to_onnx(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4))


def test_the_exporter_leaves_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        to_onnx(freeze(Shared()), torch.zeros(1, 3, 4, 4))
    assert not caplog.records
