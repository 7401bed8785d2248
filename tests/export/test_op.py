"""The op's portable body against the float64 formula, in every form, on extreme statistics."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from cbn_deploy.native_library import native_library
from export.function_body import function_body
from export.op import ADD_RELU, FORMS, PLAIN, RELU, OpForm, op_schema
from export.sessions import ort_session
from tests.export.op_cases import UNIT, Case, op_model, random_case, run_onnxruntime
from tests.reference.tolerances import TOLERANCES

EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.op_type)

CASES = st.builds(
    random_case,
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    channels=st.integers(1, 70),
    components=st.integers(1, 16),
    spatial=st.sampled_from([(), (1,), (7,), (1, 1), (3, 5), (2, 1, 3)]),
    extremity=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    alike=st.booleans(),
)


def run_native(model: onnx.ModelProto, feeds: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    outputs: list[NDArray[np.float32]] = ort_session(model, native_library()).run(None, feeds)
    return outputs


RUNNERS = (run_onnxruntime,) if native_library() is None else (run_onnxruntime, run_native)


def check(case: Case, form: OpForm, outputs: list[NDArray[np.float32]], output_rounding: float = 0.0) -> None:
    expected = case.reference(form)
    y, posterior = (output.astype(np.float64) for output in outputs)
    assert y.shape == case.x.shape
    y_error = np.abs(y - expected.y)
    allowed = UNIT * expected.y_condition + output_rounding * np.abs(expected.y) + TOLERANCES["op float32"].atol
    assert (y_error <= allowed).all(), f"{(y_error / allowed).max():.3g} times the allowed error of Y"
    allowed = UNIT * expected.posterior_condition + TOLERANCES["op float32"].atol
    error = np.abs(posterior - expected.posterior)
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} times the allowed error of the posterior"


@EVERY_FORM
@settings(max_examples=60, deadline=None)
@given(case=CASES)
def test_onnxruntime_computes_the_formula(form: OpForm, case: Case) -> None:
    check(case, form, run_onnxruntime(op_model(case, form), case.feeds(form)))


@EVERY_FORM
@settings(max_examples=25, deadline=None)
@given(case=CASES)
def test_the_reference_evaluator_computes_the_formula(form: OpForm, case: Case) -> None:
    check(case, form, ReferenceEvaluator(op_model(case, form)).run(None, case.feeds(form)))


@pytest.mark.parametrize("extremity", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("density_scale", [1.0, 2048**-0.5, 1 / 2048])
@EVERY_FORM
def test_the_widest_layer_of_a_resnet_50(form: OpForm, density_scale: float, extremity: float) -> None:
    """2048 channels: the logits of the joint density differ by hundreds, and sums have thousands of terms."""
    case = random_case(7, 2, 2048, 4, (7, 7), extremity, alike=False)
    case = dataclasses.replace(case, density_scale=density_scale)
    for run in RUNNERS:
        check(case, form, run(op_model(case, form), case.feeds(form)))


@pytest.mark.parametrize(
    ("dtype", "numpy_type", "row"),
    [
        (TensorProto.FLOAT16, np.float16, "op float16"),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16, "op bfloat16"),
    ],
)
@pytest.mark.parametrize("extremity", [0.0, 0.3])
@EVERY_FORM
def test_half_precision_input_is_rounded_once_at_the_end(
    form: OpForm, dtype: int, numpy_type: type, row: str, extremity: float
) -> None:
    case = random_case(5, 2, 12, 4, (5, 3), extremity, alike=False)
    rounded = Case(
        x=case.x.astype(numpy_type).astype(np.float32),
        residual=case.residual.astype(numpy_type).astype(np.float32),
        tables=case.tables,
        epsilon=case.epsilon,
        density_scale=case.density_scale,
    )
    outputs = run_onnxruntime(op_model(rounded, form, dtype=dtype), rounded.feeds(form))
    check(rounded, form, outputs, output_rounding=TOLERANCES[row].rtol)


@EVERY_FORM
def test_a_dead_component_gets_exactly_nothing(form: OpForm) -> None:
    case = random_case(1, 2, 6, 3, (4,), 0.0, alike=False)
    # The dead component's Gaussian sits exactly on the pixels: only its prior keeps it out.
    case.tables["tau"][:] = [0.0, 0.25, 0.75]
    case.tables["mean"][0] = case.x[0, :, 0]
    y, posterior = run_onnxruntime(op_model(case, form), case.feeds(form))
    assert (posterior[:, 0] == 0).all()
    assert np.isfinite(y).all()
    check(case, form, [y, posterior])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("components", [1, 4])
@EVERY_FORM
def test_a_non_finite_pixel_spoils_itself_only(form: OpForm, components: int, value: float) -> None:
    case = random_case(2, 2, 5, components, (3, 3), 0.0, alike=False)
    clean = run_onnxruntime(op_model(case, form), case.feeds(form))
    case.x[1, 2, 0, 1] = value
    y, posterior = run_onnxruntime(op_model(case, form), case.feeds(form))
    assert np.isnan(posterior[1, :, 0, 1]).all()
    assert np.isnan(y[1, :, 0, 1]).all()
    for now, before in zip((y, posterior), clean, strict=True):
        untouched = np.ones_like(now, dtype=bool)
        untouched[1, :, 0, 1] = False
        np.testing.assert_array_equal(now[untouched], before[untouched])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_residual_spoils_its_own_element_only(value: float) -> None:
    case = random_case(2, 2, 5, 3, (3, 3), 0.0, alike=False)
    clean = run_onnxruntime(op_model(case, ADD_RELU), case.feeds(ADD_RELU))
    case.residual[1, 2, 0, 1] = value
    y, posterior = run_onnxruntime(op_model(case, ADD_RELU), case.feeds(ADD_RELU))
    np.testing.assert_array_equal(y[1, 2, 0, 1], np.float32(value))
    y[1, 2, 0, 1] = clean[0][1, 2, 0, 1]
    np.testing.assert_array_equal(y, clean[0])
    np.testing.assert_array_equal(posterior, clean[1])


def test_equal_components_are_one() -> None:
    case = random_case(3, 2, 8, 4, (5,), 1.0, alike=True)
    for name in ("mean", "var", "scale", "bias"):
        case.tables[name][:] = case.tables[name][0]
    case.tables["tau"][:] = 0.25
    y, posterior = run_onnxruntime(op_model(case, PLAIN), case.feeds(PLAIN))
    np.testing.assert_array_equal(posterior, np.float32(0.25))
    check(case, PLAIN, [y, posterior])


def test_tau_counts_up_to_a_factor() -> None:
    case = random_case(4, 2, 8, 4, (5,), 0.0, alike=False)
    expected = run_onnxruntime(op_model(case, PLAIN), case.feeds(PLAIN))
    case.tables["tau"][:] *= 8.0
    for found, before in zip(run_onnxruntime(op_model(case, PLAIN), case.feeds(PLAIN)), expected, strict=True):
        np.testing.assert_allclose(found, before, rtol=8 * UNIT, atol=8 * UNIT)


@EVERY_FORM
@pytest.mark.parametrize("with_posterior", [False, True])
@pytest.mark.parametrize("spatial", [(), (1, 1), (4, 6)])
def test_shapes_are_inferred_and_the_checker_agrees(
    form: OpForm, with_posterior: bool, spatial: tuple[int, ...]
) -> None:
    model = op_model(random_case(0, 2, 3, 2, spatial, 0.0, alike=False), form, with_posterior=with_posterior)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type for value in inferred.graph.value_info}
    assert types["Y_typed"].elem_type == TensorProto.FLOAT
    assert len(types["Y_typed"].shape.dim) == 2 + len(spatial)


@EVERY_FORM
@pytest.mark.parametrize("with_posterior", [False, True])
def test_the_body_has_the_schema_s_signature(form: OpForm, with_posterior: bool) -> None:
    schema, body = op_schema(form), function_body(form, with_posterior=with_posterior)
    assert (body.domain, body.name) == (schema.domain, schema.name)
    assert list(body.input) == [parameter.name for parameter in schema.inputs]
    assert list(body.output) == [parameter.name for parameter in schema.outputs][: 1 + with_posterior]
    defaults = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in body.attribute_proto}
    for name, attribute in schema.attributes.items():
        assert defaults[name] == onnx.helper.get_attribute_value(attribute.default_value)


def test_the_fused_forms_are_the_unfused_ones_followed_by_their_ops() -> None:
    case = random_case(6, 2, 8, 3, (5,), 0.0, alike=False)
    plain = run_onnxruntime(op_model(case, PLAIN), case.feeds(PLAIN))[0]
    np.testing.assert_array_equal(run_onnxruntime(op_model(case, RELU), case.feeds(RELU))[0], np.maximum(plain, 0))
    fused = run_onnxruntime(op_model(case, ADD_RELU), case.feeds(ADD_RELU))[0]
    np.testing.assert_array_equal(fused, np.maximum(plain + case.residual, 0))
