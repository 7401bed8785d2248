"""Each graph pass on hand-built graphs: what it changes, what it must leave alone, what it requires."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from cbn_deploy.runtime.description import ModelDescription, Preprocessing
from export.op import ADD_RELU, PLAIN, RELU
from export.passes import (
    AddPosteriorOutputsPass,
    AttachFunctionsPass,
    DescribePass,
    FuseAddReluPass,
    FuseReluPass,
    InlineFunctionsPass,
    NameNodesPass,
    PluginAttributesPass,
)
from tests.export.graphs import graph, op_types, run

CBN = "cbn.CompoundBatchNormalization"
PLAIN_THEN_RELU = f"n = {CBN} (x, {{a}})\n out = Relu (n)"
BLOCK_END = f"n = {CBN} (x, {{a}})\n s = Add (n, r)\n out = Relu (s)"


def answers_before_and_after(model: ir.Model, *passes: ir.passes.PassBase) -> None:
    """The passes change no answer."""
    before = model.clone()
    AttachFunctionsPass()(before)
    expected = run(before)
    for graph_pass in passes:
        graph_pass(model)
    AttachFunctionsPass()(model)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    for found, wanted in zip(run(model), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


class TestNameNodes:
    def test_nodes_take_their_layer_s_name(self) -> None:
        model = graph(f"m = {CBN} (x, {{a}})\n out = {CBN} (m, {{b}})")
        assert NameNodesPass()(model).modified
        assert [node.name for node in model.graph] == ["block.a", "block.b"]

    def test_a_layer_used_twice_gets_two_names(self) -> None:
        model = graph(f"m = {CBN} (x, {{a}})\n out = {CBN} (m, {{a}})")
        NameNodesPass()(model)
        assert [node.name for node in model.graph] == ["block.a", "block.a#2"]

    def test_a_table_without_a_layer_gives_the_op_s_name(self) -> None:
        model = graph(f"out = {CBN} (x, {{a}})")
        tau = model.graph[0].inputs[1]
        assert tau is not None
        tau.name = "weights"
        NameNodesPass()(model)
        assert model.graph[0].name == PLAIN.op_type

    def test_a_graph_without_the_op_is_left_alone(self) -> None:
        assert not NameNodesPass()(graph("out = Relu (x)")).modified


class TestFuseRelu:
    def test_fuses_and_answers_stay(self) -> None:
        model = graph(PLAIN_THEN_RELU)
        NameNodesPass()(model)
        answers_before_and_after(model, FuseReluPass())
        assert op_types(model) == [RELU.op_type]
        assert model.graph[0].name == "block.a"
        assert model.graph.outputs[0].name == "out"

    def test_attributes_are_kept(self) -> None:
        model = graph(f"n = {CBN} <epsilon = 0.25, density_scale = 0.5> (x, {{a}})\n out = Relu (n)")
        answers_before_and_after(model, FuseReluPass())
        assert model.graph[0].attributes["epsilon"].as_float() == 0.25
        assert model.graph[0].attributes["density_scale"].as_float() == 0.5

    @pytest.mark.parametrize(
        ("body", "outputs"),
        [
            (f"n = {CBN} (x, {{a}})\n q = Relu (n)\n out = Add (q, n)", "float[batch, 3, 4, 4] out"),
            (PLAIN_THEN_RELU, "float[batch, 3, 4, 4] out, float[batch, 3, 4, 4] n"),
            (f"n = {CBN} (x, {{a}})\n out = LeakyRelu (n)", "float[batch, 3, 4, 4] out"),
            ("n = Neg (x)\n out = Relu (n)", "float[batch, 3, 4, 4] out"),
            (f"out = {CBN} (x, {{a}})", "float[batch, 3, 4, 4] out"),
        ],
        ids=["second consumer", "graph output", "another activation", "not the op", "no activation"],
    )
    def test_must_not_fuse(self, body: str, outputs: str) -> None:
        model = graph(body, outputs)
        before = op_types(model)
        assert not FuseReluPass()(model).modified
        assert op_types(model) == before

    def test_must_not_fuse_an_op_with_a_posterior(self) -> None:
        model = graph(PLAIN_THEN_RELU)
        NameNodesPass()(model)
        AddPosteriorOutputsPass()(model)
        assert not FuseReluPass()(model).modified


class TestFuseAddRelu:
    @pytest.mark.parametrize("operands", ["n, r", "r, n"])
    def test_fuses_with_the_op_on_either_side(self, operands: str) -> None:
        model = graph(f"n = {CBN} (x, {{a}})\n s = Add ({operands})\n out = Relu (s)")
        answers_before_and_after(model, FuseAddReluPass())
        assert op_types(model) == [ADD_RELU.op_type]
        residual = model.graph[0].inputs[1]
        assert residual is not None
        assert residual.name == "r"

    @pytest.mark.parametrize("operands", ["n, m", "m, n"])
    def test_of_two_ops_the_later_one_takes_the_other_as_residual(self, operands: str) -> None:
        model = graph(f"n = {CBN} (x, {{a}})\n m = {CBN} (r, {{b}})\n s = Add ({operands})\n out = Relu (s)")
        NameNodesPass()(model)
        answers_before_and_after(model, FuseAddReluPass())
        assert op_types(model) == [PLAIN.op_type, ADD_RELU.op_type]
        assert model.graph[1].name == "block.b"

    def test_a_residual_computed_after_the_op_comes_before_the_fused_node(self) -> None:
        model = graph(f"n = {CBN} (x, {{a}})\n late = Neg (r)\n s = Add (n, late)\n out = Relu (s)")
        answers_before_and_after(model, FuseAddReluPass())
        assert op_types(model) == ["Neg", ADD_RELU.op_type]

    @pytest.mark.parametrize(
        ("body", "outputs", "inputs"),
        [
            (f"n = {CBN} (x, {{a}})\n out = Add (n, r)", "", ""),
            (f"n = {CBN} (x, {{a}})\n s = Add (n, r)\n out = Sigmoid (s)", "", ""),
            (f"n = {CBN} (x, {{a}})\n s = Add (n, r)\n q = Relu (s)\n out = Add (q, n)", "", ""),
            (f"n = {CBN} (x, {{a}})\n s = Add (n, r)\n q = Relu (s)\n out = Add (q, s)", "", ""),
            (BLOCK_END, "float[batch, 3, 4, 4] out, float[batch, 3, 4, 4] s", ""),
            (BLOCK_END, "float[batch, 3, 4, 4] out, float[batch, 3, 4, 4] n", ""),
            (f"n = {CBN} (x, {{a}})\n s = Add (n, c)\n out = Relu (s)", "", ", float[1, 3, 1, 1] c"),
            (f"n = {CBN} (x, {{a}})\n s = Add (c, n)\n out = Relu (s)", "", ", float[1, 3, 4, 4] c"),
            (f"n = {CBN} (x, {{a}})\n s = Add (n, n)\n out = Relu (s)", "", ""),
            (f"n = {CBN} (x, {{a}})\n s = Mul (n, r)\n out = Relu (s)", "", ""),
        ],
        ids=[
            "no activation",
            "another activation",
            "second consumer of the op",
            "second consumer of the sum",
            "the sum is an output",
            "the op is an output",
            "broadcast over space",
            "broadcast over the batch",
            "added to itself",
            "a product",
        ],
    )
    def test_must_not_fuse(self, body: str, outputs: str, inputs: str) -> None:
        model = graph(body, outputs or "float[batch, 3, 4, 4] out", inputs)
        before = op_types(model)
        assert not FuseAddReluPass()(model).modified
        assert op_types(model) == before

    def test_must_not_fuse_where_a_shape_is_unknown(self) -> None:
        model = graph(BLOCK_END)
        normalised = model.graph[0].outputs[0]
        normalised.shape = None
        assert not FuseAddReluPass()(model).modified

    def test_must_not_fuse_an_op_with_a_posterior(self) -> None:
        model = graph(BLOCK_END)
        NameNodesPass()(model)
        AddPosteriorOutputsPass()(model)
        assert not FuseAddReluPass()(model).modified


class TestAddPosteriorOutputs:
    @pytest.mark.parametrize("fuse", [None, FuseReluPass()], ids=["plain", "fused"])
    def test_every_layer_s_posterior_becomes_an_output(self, fuse: ir.passes.PassBase | None) -> None:
        model = graph(f"n = {CBN} (x, {{a}})\n q = Relu (n)\n out = {CBN} (q, {{b}})")
        NameNodesPass()(model)
        if fuse is not None:
            fuse(model)
        assert AddPosteriorOutputsPass()(model).modified
        AttachFunctionsPass()(model)
        onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
        assert [output.name for output in model.graph.outputs] == ["out", "posterior.block.a", "posterior.block.b"]
        for posterior in run(model)[1:]:
            assert posterior.shape == (2, 2, 4, 4)
            np.testing.assert_allclose(posterior.sum(1), 1.0, rtol=1e-6)

    def test_requires_names(self) -> None:
        with pytest.raises(ir.passes.PreconditionError, match="has no name"):
            AddPosteriorOutputsPass()(graph(PLAIN_THEN_RELU))

    def test_refuses_to_run_twice(self) -> None:
        model = graph(PLAIN_THEN_RELU)
        NameNodesPass()(model)
        AddPosteriorOutputsPass()(model)
        with pytest.raises(ir.passes.PreconditionError, match="posterior already"):
            AddPosteriorOutputsPass()(model)


class TestPluginAttributes:
    def test_every_form_is_marked(self) -> None:
        model = graph(f"n = {CBN} (x, {{a}})\n q = Relu (n)\n m = {CBN} (q, {{b}})\n s = Add (m, r)\n out = Relu (s)")
        answers_before_and_after(model, FuseAddReluPass(), FuseReluPass(), PluginAttributesPass())
        assert op_types(model) == [RELU.op_type, ADD_RELU.op_type]
        for node in model.graph:
            assert node.attributes["plugin_namespace"].as_string() == "cbn"
            assert node.attributes["plugin_version"].as_string() == "1"
            assert node.attributes["aot"].as_int() == 1


class TestAttachFunctions:
    def test_only_the_forms_in_use(self) -> None:
        model = graph(PLAIN_THEN_RELU)
        FuseReluPass()(model)
        AttachFunctionsPass()(model)
        assert [name for _, name, _ in model.functions] == [RELU.op_type]

    def test_a_graph_without_the_op_gets_none(self) -> None:
        model = graph("out = Relu (x)")
        assert not AttachFunctionsPass()(model).modified
        assert not model.functions

    def test_refuses_nodes_that_differ_in_their_outputs(self) -> None:
        model = graph(f"m = {CBN} (x, {{a}})\n out, posterior = {CBN} (m, {{b}})")
        with pytest.raises(ir.passes.PreconditionError, match="some do not"):
            AttachFunctionsPass()(model)


class TestInlineFunctions:
    def test_flat_and_the_same_answers(self) -> None:
        model = graph(f"n = {CBN} (x, {{a}})\n q = Relu (n)\n m = {CBN} (q, {{b}})\n s = Add (m, r)\n out = Relu (s)")
        AttachFunctionsPass()(model)
        expected = run(model)[0]
        InlineFunctionsPass()(model)
        assert "cbn" not in model.opset_imports
        assert {node.domain for node in model.graph} == {""}
        assert {"n", "m"} <= {str(output.name) for node in model.graph for output in node.outputs}
        np.testing.assert_allclose(run(model)[0], expected, rtol=1e-6, atol=1e-6)

    def test_requires_functions(self) -> None:
        with pytest.raises(ir.passes.PreconditionError, match="attach functions first"):
            InlineFunctionsPass()(graph(PLAIN_THEN_RELU))


class TestDescribe:
    def test_the_description_reads_back(self) -> None:
        description = ModelDescription(
            class_names=("katze", "Hund", "日本"),
            class_counts=(120, 30, 4),
            preprocessing=Preprocessing(height=4, width=4),
            architecture="resnet20",
            components=2,
            training_prior=(0.7, 0.2, 0.1),
            source_sha256="ab" * 32,
            parity={"inputs": 256},
        )
        model = graph(PLAIN_THEN_RELU)
        DescribePass(description, "9.9")(model)
        proto = ir.serde.serialize_model(model)
        assert (proto.producer_name, proto.producer_version) == ("cbn-deploy", "9.9")
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        assert ModelDescription.from_metadata(metadata).to_dict() == description.to_dict()


def test_a_node_with_missing_inputs_is_named() -> None:
    model = graph(f"out = {CBN} (x, {{a}})")
    node = model.graph[0]
    node.name = "block.a"
    node.replace_input_with(3, None)
    with pytest.raises(ir.passes.PreconditionError) as caught:
        AddPosteriorOutputsPass()(model)
    assert "'block.a' must have the inputs X, tau" in str(caught.value.__cause__)
