"""Linear layers around the op move into its tables: on hand-built graphs, and through the exporter's own gate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig, freeze
from cbn_deploy.runtime.description import Preprocessing
from export.inputs import EXTREMES, ParityInputs
from export.op_nodes import cbn_nodes
from export.op_sites import find_sites
from export.op_tables import read_tables
from export.parity import check_parity
from export.passes import AttachFunctionsPass, FoldLinearAfterPass, FoldLinearBeforePass
from export.rounding import UNIT, OpTables, allowed_error
from export.to_onnx import build_graph
from tests.checkpoints import digit_pixels
from tests.export.graphs import CHANNELS, graph, op_types, run
from tests.reference.op_float64 import compound_batch_normalization
from tests.reference.tolerances import TOLERANCES

CBN = "cbn.CompoundBatchNormalization"
PASSES = (FoldLinearBeforePass(), FoldLinearAfterPass())
SHAPES = {"per channel": (1, CHANNELS, 1, 1), "unbatched": (CHANNELS, 1, 1), "scalar": (), "one": (1,)}
# Powers of ten and signs: what a learned gain may be, and far beyond.
gains = st.builds(
    lambda sign, exponent: sign * 10.0**exponent, st.sampled_from([-1.0, 1.0]), st.floats(-6, 6, allow_nan=False)
)


def with_constants(body: str, outputs: str = "", **constants: NDArray[np.floating]) -> ir.Model:
    """:func:`graph` with more initializers, and the shape of every value."""
    model = graph(body, *([outputs] if outputs else []))
    for name, array in constants.items():
        (value,) = {v for node in model.graph for v in node.inputs if v is not None and v.name == name}
        value.const_value = ir.Tensor(np.asarray(array, dtype=np.float32), name=name)
        value.shape, value.dtype = ir.Shape(np.shape(array)), ir.DataType.FLOAT
        model.graph.register_initializer(value)
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].dtype = model.graph.inputs[0].shape, ir.DataType.FLOAT
    return model


def fold(model: ir.Model) -> bool:
    """Whether either pass changed the model."""
    return bool(sum(graph_pass(model).modified for graph_pass in PASSES))


def reference(x: NDArray[np.floating], tables: OpTables) -> NDArray[np.float64]:
    return compound_batch_normalization(
        x.astype(np.float64), *tables.float64(), float(np.float32(tables.epsilon)), tables.density_scale, unit=UNIT
    ).y


@pytest.mark.parametrize("shape", list(SHAPES.values()), ids=list(SHAPES))
@pytest.mark.parametrize(
    ("before", "after", "op_type"),
    [
        ("m = Mul (x, c)", "out = Mul (y, c)", "Mul"),
        ("m = Mul (c, x)", "out = Mul (c, y)", "Mul"),
        ("m = Div (x, c)", "out = Div (y, c)", "Div"),
        ("m = Add (c, x)", "out = Add (c, y)", "Add"),
        ("m = Sub (x, c)", "out = Sub (y, c)", "Sub"),
        ("m = Sub (c, x)", "out = Sub (c, y)", "Sub"),
    ],
)
def test_arithmetic_on_both_sides(shape: tuple[int, ...], before: str, after: str, op_type: str) -> None:
    constant = np.random.default_rng(0).normal(size=shape) - 1.5
    model = with_constants(f"{before}\n y = {CBN} (m, {{a}})\n {after}", c=constant)
    expected = answers(model)
    assert fold(model)
    assert op_types(model) == [CBN.split(".")[1]]
    np.testing.assert_allclose(answers(model), expected, rtol=1e-5, atol=1e-5)
    assert model.graph.outputs[0].name == "out"


def answers(model: ir.Model) -> NDArray[np.float32]:
    runnable = model.clone()
    AttachFunctionsPass()(runnable)
    onnx.checker.check_model(ir.serde.serialize_model(runnable), full_check=True)
    return run(runnable)[0]


@settings(max_examples=150, deadline=None)
@given(
    gain=st.lists(gains, min_size=CHANNELS, max_size=CHANNELS),
    offset=st.lists(st.floats(-20, 20), min_size=CHANNELS, max_size=CHANNELS),
    epsilon=st.sampled_from([1e-5, 1e-3, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_folding_before_is_exact_for_any_gain(
    gain: list[float], offset: list[float], epsilon: float, seed: int
) -> None:
    """The folded tables, in float64, give the formula's answer on gain x + offset, up to their rounding to float32."""
    a, b = (np.array(v, dtype=np.float32).reshape(1, CHANNELS, 1, 1) for v in (gain, offset))
    model = with_constants(f"m = Mul (x, a)\n s = Add (m, b)\n out = {CBN} <epsilon = {epsilon}> (s, {{a}})", a=a, b=b)
    (before,) = cbn_nodes(model)
    tables = read_tables(before)
    assert tables is not None
    assert FoldLinearBeforePass()(model).modified
    (op,) = cbn_nodes(model)
    folded = read_tables(op)
    assert folded is not None
    assert op.inputs["X"] is model.graph.inputs[0]
    assert (folded.var > 0).all()
    assert folded.epsilon > 0
    np.testing.assert_array_equal(folded.bias, tables.bias)
    np.testing.assert_array_equal(np.abs(folded.scale), np.abs(tables.scale))
    rng = np.random.default_rng(seed)
    # Pixels where the mixture lies, so that the components compete.
    seen = rng.normal(size=(5, CHANNELS)) * np.sqrt(tables.var.mean(0)) + tables.mean[rng.integers(0, 2, 5)]
    x = (seen - b.reshape(1, -1)) / a.reshape(1, -1)
    expected = reference(x * a.reshape(1, -1).astype(np.float64) + b.reshape(1, -1), tables)
    # Eight times the op's own limit: means up to 64 deviations from 0 have been rounded to float32.
    allowed = allowed_error(x, folded, 8 * TOLERANCES["op float32"].rtol / UNIT)
    assert (np.abs(reference(x, folded) - expected) <= allowed).all()


@settings(max_examples=50, deadline=None)
@given(gain=st.lists(gains, min_size=CHANNELS, max_size=CHANNELS), seed=st.integers(0, 2**16))
def test_folding_after_is_exact_for_any_gain(gain: list[float], seed: int) -> None:
    a = np.array(gain, dtype=np.float32).reshape(CHANNELS, 1, 1)
    model = with_constants(f"y = {CBN} (x, {{a}})\n out = Mul (y, a)", a=a)
    tables = read_tables(cbn_nodes(model)[0])
    assert FoldLinearAfterPass()(model).modified
    folded = read_tables(cbn_nodes(model)[0])
    assert tables is not None
    assert folded is not None
    x = np.random.default_rng(seed).normal(size=(5, CHANNELS))
    expected = reference(x, tables) * a.reshape(1, -1)
    allowed = allowed_error(x, tables, 4.0) * np.abs(a.reshape(1, -1))
    assert (np.abs(reference(x, folded) - expected) <= allowed).all()


CHANNEL = np.array([0.5, -2.0, 3.0]).reshape(1, CHANNELS, 1, 1)
BOTH = "float[batch, 3, 4, 4] out, float[batch, 3, 4, 4] m"


@pytest.mark.parametrize(
    ("body", "outputs", "constant"),
    [
        (f"m = Mul (x, c)\n out = {CBN} (m, {{a}})", "", np.array([0.5, 0.0, 3.0]).reshape(3, 1, 1)),
        (f"m = Mul (x, c)\n out = {CBN} (m, {{a}})", "", np.full((), 1e-20)),
        (f"m = Mul (x, c)\n out = {CBN} (m, {{a}})", "", np.full((), 1e20)),
        (f"m = Div (x, c)\n out = {CBN} (m, {{a}})", "", np.zeros(())),
        (f"m = Add (x, c)\n out = {CBN} (m, {{a}})", "", np.full((), np.inf)),
        (f"m = Sub (x, c)\n out = {CBN} (m, {{a}})", "", np.full((), 1e3)),
        (f"m = Div (c, x)\n out = {CBN} (m, {{a}})", "", CHANNEL),
        (f"m = Mul (x, c)\n out = {CBN} (m, {{a}})", "", np.ones((4, 1))),
        (f"m = Mul (x, c)\n out = {CBN} (m, {{a}})", "", np.ones((3, 4, 4))),
        (f"m = Mul (x, c)\n n = {CBN} (m, {{a}})\n out = Add (m, n)", "", CHANNEL),
        (f"m = Mul (x, c)\n out = {CBN}AddRelu (m, m, {{a}})", "", CHANNEL),
        (f"m = Mul (x, c)\n out = {CBN} (m, {{a}})", BOTH, CHANNEL),
        (f"m = Mul (x, r)\n d = Relu (m)\n out = {CBN} (d, {{a}})", "", None),
        (f"m = {CBN} (x, {{a}})\n out = Mul (m, c)", BOTH, CHANNEL),
        (f"m = {CBN} (x, {{a}})\n s = Mul (m, c)\n out = Add (s, m)", "", CHANNEL),
        (f"m = {CBN} (x, {{a}})\n out = Div (c, m)", "", CHANNEL),
        (f"m = {CBN} (x, {{a}})\n out = Div (m, c)", "", np.full((), 1e-39)),
        (f"m = {CBN} (x, {{a}})\n out = Mul (m, c)", "", np.ones((4, 4))),
        (f"m = {CBN}Relu (x, {{a}})\n out = Mul (m, c)", "", CHANNEL),
        (f"m = {CBN} (x, {{a}})\n out = Mul (m, r)", "", None),
        (f"m = {CBN} (x, {{a}})\n out = Mul (m, m)", "", None),
    ],
    ids=[
        "gain of zero",
        "gain too small for float32",
        "gain too large for float32",
        "divided by zero",
        "infinite offset",
        "offset of a thousand deviations",
        "a reciprocal",
        "differs along a row",
        "differs within a channel",
        "read by something else",
        "its own residual",
        "an output of the model",
        "two inputs",
        "normalised value is an output",
        "normalised value read by something else",
        "reciprocal of the normalised value",
        "tables would overflow",
        "after, differs within a channel",
        "after an activation",
        "times another input",
        "squared",
    ],
)
def test_must_not_fold(body: str, outputs: str, constant: NDArray[np.floating] | None) -> None:
    model = with_constants(body, outputs, **({} if constant is None else {"c": constant}))
    before = op_types(model)
    assert not fold(model)
    assert op_types(model) == before


def test_a_shared_table_changes_for_the_folded_node_only() -> None:
    model = with_constants(f"m = Mul (x, c)\n n = {CBN} (m, {{a}})\n q = Relu (n)\n out = {CBN} (q, {{a}})", c=CHANNEL)
    expected = answers(model)
    assert fold(model)
    assert op_types(model) == ["CompoundBatchNormalization", "Relu", "CompoundBatchNormalization"]
    np.testing.assert_allclose(answers(model), expected, rtol=1e-5, atol=1e-5)


def test_a_posterior_that_is_read_stays_right() -> None:
    model = with_constants(f"m = Mul (x, c)\n y, w = {CBN} (m, {{a}})\n out = Mul (y, c)", c=CHANNEL)
    assert FoldLinearBeforePass()(model).modified
    assert not FoldLinearAfterPass()(model).modified


# What people put around a normalisation layer.


class Net(nn.Module):
    """Two blocks with something linear around their layers, and a classifier."""

    def __init__(self, before: Callable[[int], nn.Module], after: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=True)
        self.bn1 = CompoundBatchNorm2d(8, NormConfig(components=3))
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=True)
        self.before = before(8)
        self.bn2 = CompoundBatchNorm2d(8, NormConfig(components=3))
        self.after = after(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)))
        x = F.relu(x + self.after(self.bn2(self.before(self.conv(x)))))
        return self.fc(x.mean((2, 3)))


class Scale(nn.Module):
    """LayerScale (gamma of shape (D, 1, 1)), or SkipInit's scalar where ``shape`` is ()."""

    def __init__(self, shape: tuple[int, ...], low: float, high: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(shape).uniform_(low, high))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Viewed(Scale):
    """A flat parameter that is reshaped on the way."""

    def forward(self, x: Tensor) -> Tensor:
        return x / self.gamma.view(1, -1, 1, 1) - 0.25


REAL_LAYERS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
    "convolutions with a bias": (lambda _d: nn.Identity(), lambda _d: nn.Identity()),
    "LayerScale": (lambda _d: nn.Identity(), lambda d: Scale((d, 1, 1), -0.1, 0.1)),
    "SkipInit": (lambda _d: nn.Identity(), lambda _d: Scale((), 0.1, 0.2)),
    "batch norm before": (nn.BatchNorm2d, lambda _d: nn.Identity()),
    "batch norm after": (lambda _d: nn.Identity(), nn.BatchNorm2d),
    "reshaped parameters": (lambda d: Viewed((d,), -3.0, -1.0), lambda d: Viewed((d,), 1e-3, 2e-3)),
}


@pytest.mark.parametrize("name", REAL_LAYERS)
def test_real_networks_pass_the_gate(name: str) -> None:
    torch.manual_seed(0)
    model = Net(*REAL_LAYERS[name])
    pixels, _ = digit_pixels(32)
    preprocessing = Preprocessing(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    inputs = ParityInputs(preprocessing, pixels, 2 * len(EXTREMES) + 4, 0)
    with torch.no_grad():
        for _ in range(20):
            model(torch.from_numpy(inputs.batch(range(8))))
    model.eval()
    exported = build_graph(freeze(model), torch.zeros(1, 3, 32, 32))
    assert set(op_types(exported)) == {
        "Conv",
        "CompoundBatchNormalizationRelu",
        "CompoundBatchNormalizationAddRelu",
        "ReduceMean",
        "Gemm",
    }
    for node in exported.graph:
        assert node.op_type != "Conv" or len(node.inputs) == 2
    used = {value.name for node in exported.graph for value in node.inputs if value is not None}
    assert set(exported.graph.initializers) <= used
    report = check_parity(model, ir.serde.serialize_model(exported), find_sites(exported), inputs)
    assert not report.rounding_allowed
