"""The op's native kernels inside onnxruntime: same answers as the formula, whatever the threads, types and graph."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cbn_deploy.native_library import native_library
from cbn_deploy.runtime.factory import open_session
from export import ExportResult
from export.op import ADD_RELU, DOMAIN, FORMS, PLAIN, TABLES, VERSION, OpForm
from tests.export.op_cases import UNIT, Case, op_model, random_case, run_onnxruntime
from tests.export.test_op import check
from tests.reference.tolerances import TOLERANCES

EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.op_type)
CASES = st.builds(
    random_case,
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 5),
    channels=st.integers(1, 70),
    components=st.integers(1, 18),
    spatial=st.sampled_from([(), (1,), (7,), (1, 1), (3, 5), (2, 1, 3), (7, 7), (32, 32), (45, 31)]),
    extremity=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    alike=st.booleans(),
)


def fused_session(model: onnx.ModelProto, threads: int = 2) -> onnxruntime.InferenceSession:
    library = native_library()
    if library is None:
        pytest.skip("the native library was not built")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_fused(model: onnx.ModelProto, feeds: dict[str, NDArray[np.float32]], threads: int = 2) -> list[np.ndarray]:
    outputs: list[np.ndarray] = fused_session(model, threads).run(None, feeds)
    return outputs


@EVERY_FORM
@settings(max_examples=60, deadline=None)
@given(case=CASES, threads=st.integers(1, 4))
def test_the_fused_op_is_the_formula(form: OpForm, case: Case, threads: int) -> None:
    check(case, form, run_fused(op_model(case, form), case.feeds(form), threads))


@EVERY_FORM
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_by_environment(
    form: OpForm, instruction_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_case(11, 3, 20, 4, (33, 31), 0.3, alike=False)
    monkeypatch.setenv("CBN_INSTRUCTION_SET", instruction_set)
    library = native_library()
    if library is not None and library.instruction_set is None:
        pytest.skip(f"this processor has no {instruction_set}")
    check(case, form, run_fused(op_model(case, form), case.feeds(form)))


@EVERY_FORM
@pytest.mark.parametrize(
    ("dtype", "numpy_type", "row"),
    [
        (TensorProto.FLOAT16, np.float16, "op float16"),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16, "op bfloat16"),
    ],
)
@pytest.mark.parametrize("with_posterior", [False, True])
def test_half_precision_runs_in_its_own_kernel(
    form: OpForm, dtype: int, numpy_type: type, row: str, with_posterior: bool
) -> None:
    case = random_case(5, 2, 12, 4, (5, 13), 0.3, alike=False)
    case = Case(
        x=case.x.astype(numpy_type).astype(np.float32),
        residual=case.residual.astype(numpy_type).astype(np.float32),
        tables=case.tables,
        epsilon=case.epsilon,
        density_scale=case.density_scale,
    )
    outputs = run_fused(op_model(case, form, dtype=dtype, with_posterior=with_posterior), case.feeds(form))
    expected = case.reference(form)
    y_error = np.abs(outputs[0] - expected.y)
    tolerance = TOLERANCES[row]
    assert (y_error <= UNIT * expected.y_condition + tolerance.rtol * np.abs(expected.y) + tolerance.atol).all()
    # Rounded to the type once: every value is one of the type's own.
    np.testing.assert_array_equal(outputs[0], outputs[0].astype(numpy_type).astype(np.float32))


@EVERY_FORM
def test_the_number_of_threads_changes_no_bit(form: OpForm) -> None:
    case = random_case(12, 7, 24, 4, (40, 41), 0.0, alike=False)
    model, feeds = op_model(case, form), case.feeds(form)
    one = run_fused(model, feeds, threads=1)
    for threads in (2, 3, 5):
        for now, before in zip(run_fused(model, feeds, threads), one, strict=True):
            np.testing.assert_array_equal(now, before)


def test_sixteen_sessions_at_once() -> None:
    cases = [random_case(seed, 2, 16, 1 + seed % 8, (24, 24), 0.0, alike=False) for seed in range(16)]
    forms = [list(FORMS.values())[seed % 3] for seed in range(16)]

    def life(index: int) -> list[np.ndarray]:
        """Open, run several times, close: all of it beside the others."""
        case, form = cases[index], forms[index]
        session = fused_session(op_model(case, form))
        runs = [session.run(None, case.feeds(form)) for _ in range(5)]
        for again in runs[1:]:
            for now, before in zip(again, runs[0], strict=True):
                np.testing.assert_array_equal(now, before)
        return list(runs[0])

    with ThreadPoolExecutor(16) as pool:
        for case, form, outputs in zip(cases, forms, pool.map(life, range(16)), strict=True):
            check(case, form, outputs)


def test_one_session_runs_in_many_threads() -> None:
    case = random_case(13, 4, 16, 4, (24, 24), 0.0, alike=False)
    session = fused_session(op_model(case, ADD_RELU))
    with ThreadPoolExecutor(8) as pool:
        for outputs in pool.map(lambda _: session.run(None, case.feeds(ADD_RELU)), range(40)):
            check(case, ADD_RELU, outputs)


def test_the_library_wins_over_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(0, 1, 3, 2, (4,), 0.0, alike=False)
    model = op_model(case, PLAIN)
    monkeypatch.setenv("CBN_INSTRUCTION_SET", "mmx")
    run_onnxruntime(model, case.feeds(PLAIN))
    with pytest.raises(Exception, match="CBN_INSTRUCTION_SET names an instruction set that cannot run here"):
        run_fused(model, case.feeds(PLAIN))


def node_model(
    case: Case,
    form: OpForm,
    x_shape: list[str | int | None] | None,
    *,
    tables_as_inputs: bool = False,
    outputs: int = 2,
    **attributes: object,
) -> onnx.ModelProto:
    """One node without its function; output shapes are left to be inferred."""
    names = [name for name in form.inputs if name not in TABLES]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x_shape) for name in names]
    initializers = [onnx.numpy_helper.from_array(table, name) for name, table in case.tables.items()]
    if tables_as_inputs:
        inputs += [helper.make_tensor_value_info(item.name, TensorProto.FLOAT, item.dims) for item in initializers]
        initializers = []
    node = helper.make_node(form.op_type, list(form.inputs), ["Y", "posterior"][:outputs], domain=DOMAIN, **attributes)
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output]
    graph = helper.make_graph([node], "node", inputs, results, initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("x_shape", [[2, 3, 4, 5], ["batch", 3, 4, "width"], ["batch", "channels"]])
@pytest.mark.parametrize("outputs", [1, 2])
def test_shapes_are_inferred(x_shape: list[str | int | None], outputs: int) -> None:
    case = random_case(0, 2, 3, 2, (4, 5), 0.0, alike=False)
    y, *posterior = fused_session(node_model(case, PLAIN, x_shape, outputs=outputs)).get_outputs()
    assert (y.type, y.shape) == ("tensor(float)", x_shape)
    assert [value.type for value in posterior] == ["tensor(float)"] * (outputs - 1)


@pytest.mark.parametrize("x_shape", [None, ["batch", 3, None, None]])
@EVERY_FORM
def test_shapes_that_are_open_stay_open(form: OpForm, x_shape: list[str | int | None] | None) -> None:
    case = random_case(0, 2, 3, 2, (4, 5), 0.0, alike=False)
    model = node_model(case, form, x_shape, epsilon=case.epsilon, density_scale=case.density_scale)
    check(case, form, run_fused(model, case.feeds(form)))


@EVERY_FORM
def test_tables_may_be_computed_by_the_graph(form: OpForm) -> None:
    case = random_case(14, 2, 6, 3, (5, 5), 0.3, alike=False)
    model = node_model(case, form, None, tables_as_inputs=True, epsilon=case.epsilon, density_scale=case.density_scale)
    check(case, form, run_fused(model, case.feeds(form) | case.tables))


def test_defaults_and_attributes_for_others() -> None:
    case = random_case(15, 2, 6, 3, (5, 5), 0.0, alike=False)
    case = Case(case.x, case.residual, case.tables, epsilon=1e-5, density_scale=1.0)
    check(case, PLAIN, run_fused(node_model(case, PLAIN, None), case.feeds(PLAIN)))
    marked = node_model(case, PLAIN, None, plugin_namespace="cbn", plugin_version="1", aot=1)
    check(case, PLAIN, run_fused(marked, case.feeds(PLAIN)))


def test_an_empty_batch_is_no_error() -> None:
    case = random_case(0, 2, 3, 2, (4, 5), 0.0, alike=False)
    y, posterior = run_fused(node_model(case, PLAIN, None), {"X": case.x[:0]})
    assert (y.shape, posterior.shape) == ((0, 3, 4, 5), (0, 2, 4, 5))


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({"X": (2, 4, 5, 5)}, r"X must have shape \(B, D, \*spatial\) with D = 6"),
        ({"X": (2,)}, r"X must have shape \(B, D, \*spatial\) with D = 6"),
        ({"residual": (2, 6, 5, 4)}, "residual must have X's shape"),
        ({"tau": (2,)}, r"mean must have shape \(M, D\)"),
        ({"tau": (3, 1)}, r"tau must have shape \(M\)"),
        ({"bias": (3, 5)}, r"bias must have shape \(M, D\)"),
        ({"tau": (0,), **dict.fromkeys(("mean", "var", "scale", "bias"), (0, 6))}, "1 to 256 components"),
    ],
)
def test_wrong_shapes_are_one_sentence(feeds: dict[str, tuple[int, ...]], sentence: str) -> None:
    case = random_case(16, 2, 6, 3, (5, 5), 0.0, alike=False)
    values = case.feeds(ADD_RELU) | case.tables
    values |= {name: np.ones(shape, np.float32) for name, shape in feeds.items()}
    names = set(values)
    graph = node_model(case, ADD_RELU, None, tables_as_inputs=True)
    for value in graph.graph.input:  # any shape may come in
        value.type.tensor_type.ClearField("shape")
    assert names == {value.name for value in graph.graph.input}
    with pytest.raises(Exception, match=sentence):
        run_fused(graph, values)


def test_an_attribute_of_the_wrong_type_is_one_sentence() -> None:
    case = random_case(17, 2, 6, 3, (5, 5), 0.0, alike=False)
    with pytest.raises(Exception, match="attribute epsilon must be a float"):
        run_fused(node_model(case, PLAIN, None, epsilon=1), case.feeds(PLAIN))


def test_an_exported_network_runs_fused_and_says_so(
    exported: ExportResult, flat: ExportResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = native_library()
    if library is None:
        pytest.skip("the native library was not built")
    rng = np.random.default_rng(0)
    with open_session(Path(exported.path), threads=2) as fused, open_session(Path(flat.path)) as inlined:
        size = fused.description.preprocessing
        images = rng.normal(size=(5, 3, size.height, size.width)).astype(np.float32)
        assert (fused.describe().kernel_path, fused.describe().instruction_set) == ("fused", library.instruction_set)
        assert (inlined.describe().kernel_path, inlined.describe().instruction_set) == ("portable", None)
        found = fused.run(images).logits
    monkeypatch.setenv("CBN_DISABLE_NATIVE", "1")
    with open_session(Path(exported.path)) as portable:
        assert (portable.describe().kernel_path, portable.describe().instruction_set) == ("portable", None)
        expected = portable.run(images).logits
    scale = np.maximum(np.abs(expected).max(1, keepdims=True), 1.0)
    assert (np.abs(found - expected) <= 2 * TOLERANCES["exported logits"].atol * scale).all()
