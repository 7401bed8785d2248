"""What a float16 file holds: half the size, float32 tables and densities, float32 at both ends."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from cbn_deploy.errors import ParityError
from cbn_deploy.norm import freeze
from export import ExportResult, to_onnx
from export.inputs import ParityInputs
from export.op import ADD_RELU, DOMAIN, FORMS, PLAIN
from export.op_check import check_ops
from export.op_sites import find_sites
from export.passes.attach_functions import AttachFunctionsPass
from export.passes.to_sixteen_bits import ToSixteenBitsPass
from tests.export.conftest import FEW
from tests.export.graphs import graph, op_types, run
from tests.export.op_cases import Case, op_model, random_case, run_onnxruntime
from tests.export.precision.conftest import PREPROCESSING
from tests.reference.tolerances import TOLERANCES, tolerance

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
BODY = "y = cbn.CompoundBatchNormalization (x, {a}) s = Add (y, r) out = Relu (s)"


def test_weights_are_float16_and_tables_float32(fp16_proto: onnx.ModelProto, trained_model: nn.Module) -> None:
    tables = {name for node in fp16_proto.graph.node if node.domain == DOMAIN for name in node.input[-5:]}
    types = {tensor.name: tensor.data_type for tensor in fp16_proto.graph.initializer}
    assert {types[name] for name in tables} == {FLOAT}
    others = {types[name] for name in types.keys() - tables}
    assert HALF in others
    assert FLOAT not in others
    (weight,) = [t for t in fp16_proto.graph.initializer if t.name.startswith("layer1.0.conv1.weight")]
    exact = trained_model.get_submodule("layer1.0.conv1").weight.detach().numpy()
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), exact.astype(np.float16))
    for value in (*fp16_proto.graph.input, *fp16_proto.graph.output):
        assert value.type.tensor_type.elem_type == FLOAT


def test_the_file_is_about_half_as_large(fp16: ExportResult, trained_model: nn.Module) -> None:
    full = len(to_onnx(freeze(trained_model), torch.zeros(1, 3, 16, 16)).SerializeToString())
    assert fp16.size < 0.6 * full


def test_every_node_of_the_op_works_on_float16(fp16: ExportResult, fp16_proto: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(fp16_proto)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    for node in fp16_proto.graph.node:
        if node.domain == DOMAIN:
            assert types[node.input[0]] == types[node.output[0]] == HALF
    assert len(fp16.parity.ops) == 19
    assert all(0 < op.of_limit <= 1 for op in fp16.parity.ops)


def half_model(case: Case, form: str) -> ir.Model:
    """One node with float32 inputs and outputs, lowered."""
    proto = op_model(case, FORMS[form], with_posterior=False)
    for node in proto.graph.node:
        if node.op_type == "Cast":
            node.op_type = "Identity"
            del node.attribute[:]
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    ToSixteenBitsPass(ir.DataType.FLOAT16)(model)
    return model


@pytest.mark.parametrize("form", [PLAIN.op_type, ADD_RELU.op_type])
@pytest.mark.parametrize("seed", range(4))
def test_densities_of_extreme_statistics_stay_float32(form: str, seed: int) -> None:
    # Log-densities of tens of thousands that differ by less than 1: float16 has steps of 16 there.
    case = random_case(seed, 2, 24, 4, (3, 5), 0.0, alike=False)
    shift = np.float32(30.0)
    case.tables["mean"][:] = case.tables["mean"] * np.float32(0.01) + shift
    case.tables["var"][:] = np.float32(0.03)
    x = (shift + np.random.default_rng(seed).normal(size=case.x.shape) * 8).astype(np.float16).astype(np.float32)
    residual = case.residual.astype(np.float16).astype(np.float32)
    case = Case(x, residual, case.tables, case.epsilon, 1.0)
    expected = case.reference(FORMS[form])
    log_density = 0.5 * ((x[:, None] - case.tables["mean"][None, :, :, None, None]) ** 2 / 0.03).sum(2)
    assert log_density.max() > 2e4
    (y,) = run_onnxruntime(ir.serde.serialize_model(half_model(case, form)), case.feeds(FORMS[form]))
    single, half = TOLERANCES["op float32"], TOLERANCES["op float16"]
    allowed = single.rtol * expected.y_condition + half.rtol * np.abs(expected.y) + half.atol
    assert (np.abs(y - expected.y) <= allowed).all()


def test_the_check_of_every_node_sees_a_table_in_float16(fp16_proto: onnx.ModelProto, trained_model: nn.Module) -> None:
    wrong = onnx.ModelProto()
    wrong.CopyFrom(fp16_proto)
    sites = find_sites(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(fp16_proto)))
    assert all(site.dtype == ir.DataType.FLOAT16 for site in sites)
    (mean,) = [tensor for tensor in wrong.graph.initializer if tensor.name == "layer2.1.bn1.mean"]
    rounded = onnx.numpy_helper.to_array(mean).astype(np.float16).astype(np.float32)
    mean.CopyFrom(onnx.numpy_helper.from_array(rounded, mean.name))
    inputs = ParityInputs(PREPROCESSING, np.empty((0, 16, 16, 3), np.uint8), FEW, 0)
    with pytest.raises(ParityError, match=r"layer2\.1\.bn1"):
        check_ops(wrong, sites, inputs)


def test_the_pass_casts_at_both_ends_only() -> None:
    model, exact = graph(BODY), graph(BODY)
    for each in (model, exact):
        AttachFunctionsPass()(each)
    before = run(exact)
    ToSixteenBitsPass(ir.DataType.FLOAT16)(model)
    assert op_types(model) == ["Cast", "Cast", "CompoundBatchNormalization", "Add", "Relu", "Cast"]
    assert [value.name for value in model.graph.outputs] == ["out"]
    (found,), (expected,) = run(model), before
    np.testing.assert_allclose(found, expected, **tolerance("graph float16"))


def test_a_posterior_stays_float32() -> None:
    model = graph(
        "y, w = cbn.CompoundBatchNormalization (x, {a}) out = Relu (y)",
        outputs="float[batch, 3, 4, 4] out, float[batch, 2, 4, 4] w",
    )
    ToSixteenBitsPass(ir.DataType.FLOAT16)(model)
    assert [str(value.dtype) for value in model.graph.outputs] == ["FLOAT", "FLOAT"]
    (node,) = [node for node in model.graph if node.domain == DOMAIN]
    assert node.outputs[0].dtype == ir.DataType.FLOAT16
    assert node.outputs[1] is model.graph.outputs[1]


def test_a_shared_constant_keeps_float32_for_the_tables() -> None:
    body = "y = cbn.CompoundBatchNormalization (x, {a}) z = MatMul (block_a_mean, r2) out = Relu (y)"
    model = graph(body, outputs="float[batch, 3, 4, 4] out, float[2, 5] z", inputs=", float[3, 5] r2")
    ToSixteenBitsPass(ir.DataType.FLOAT16)(model)
    names = {str(name): value.dtype for name, value in model.graph.initializers.items()}
    assert names["block.a.mean"] == ir.DataType.FLOAT
    assert names["block.a.mean_float16"] == ir.DataType.FLOAT16


def test_an_op_that_is_not_known_is_refused() -> None:
    model = graph("y = cbn.CompoundBatchNormalization (x, {a}) out = Erf (y)")
    with pytest.raises(ir.passes.PreconditionError, match="Erf"):
        ToSixteenBitsPass(ir.DataType.FLOAT16)(model)
