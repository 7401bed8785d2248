"""The native library on 8-bit channels-last tensors: the float64 formula, rounded once to the numbers of a byte."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cbn_deploy.native_library import UINT8, Quantum
from export.op import ADD_RELU, FORMS, PLAIN, RELU, OpForm
from tests.cbn_deploy.kernels.native_cases import INSTRUCTION_SETS, native_layer, run_native_uint8
from tests.export.op_cases import UNIT, Case, random_case

LANES = {"baseline": 4, "avx2": 8, "avx512": 16}
EVERY_SET = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.op_type)
SPATIAL = [(), (1,), (7,), (3, 5), (2, 1, 3), (8, 8), (9, 15), (16, 20)]


def quantum_of(values: NDArray[np.floating], zero: int, narrowing: float) -> Quantum:
    """Reaches the largest of ``values`` with 8 bits, or only so many times less far."""
    largest = float(np.abs(values).max())
    return Quantum(max(largest, 1e-20) / max(zero, 255 - zero) / narrowing, zero)


def quantized(values: NDArray[np.float32], quantum: Quantum) -> NDArray[np.float32]:
    """The nearest numbers that 8 bits can say."""
    steps = np.clip(np.rint(values / np.float32(quantum.scale)), -quantum.zero, 255 - quantum.zero)
    return (steps * np.float32(quantum.scale)).astype(np.float32)


def quantized_case(case: Case, x: Quantum, residual: Quantum) -> Case:
    return dataclasses.replace(case, x=quantized(case.x, x), residual=quantized(case.residual, residual))


def identity_case(x: NDArray[np.float32]) -> Case:
    """One component with mean 0, deviation 1, scale 1 and bias 0 returns what it reads."""
    ones, zeros = np.ones((1, x.shape[1]), np.float32), np.zeros((1, x.shape[1]), np.float32)
    tables = {"tau": np.ones(1, np.float32), "mean": zeros, "var": ones, "scale": ones, "bias": zeros}
    return Case(x, np.zeros_like(x), tables, epsilon=0.0, density_scale=1.0)


@EVERY_SET
@EVERY_FORM
@settings(max_examples=50, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 4),
    vectors=st.integers(1, 9) | st.just(40),
    components=st.integers(1, 18),
    spatial=st.sampled_from(SPATIAL),
    extremity=st.sampled_from([0.0, 0.3, 0.6]),
    zeros=st.tuples(*[st.integers(0, 255) | st.sampled_from([0, 128, 255])] * 3),
    narrowing=st.sampled_from([0.3, 1.0, 1.5, 20.0]),
)
def test_every_number_is_the_formula_rounded_once(
    form: OpForm,
    instruction_set: str,
    data: st.DataObject,
    seed: int,
    batch: int,
    vectors: int,
    components: int,
    spatial: tuple[int, ...],
    extremity: float,
    zeros: tuple[int, int, int],
    narrowing: float,
) -> None:
    channels = vectors * LANES[instruction_set]
    case = random_case(seed, batch, channels, components, spatial, extremity, alike=False)
    x, residual = quantum_of(case.x, zeros[0], 1.0), quantum_of(case.residual, zeros[1], 1.0)
    case = quantized_case(case, x, residual)
    expected = case.reference(form)
    y = quantum_of(expected.y, zeros[2], narrowing)
    cuts = data.draw(st.lists(st.integers(0, case.x.size // channels), max_size=3))
    found = run_native_uint8(case, form, (x, residual, y), instruction_set=instruction_set, cuts=cuts)
    exact = np.clip(expected.y / y.scale + y.zero, 0, 255)
    # Half a number, what float32 may err before the rounding, and the rounding of the quotient itself.
    allowed = 0.5 + (UNIT * expected.y_condition + 2**-23 * np.abs(expected.y)) / y.scale
    error = np.abs(found - exact)
    assert (error <= allowed).all(), f"{(error - allowed).max():.3g} of a number too far"


@EVERY_SET
@pytest.mark.parametrize("zero", [0, 1, 128, 255])
@pytest.mark.parametrize("scale", [2.0**-7, 0.1, 1e-30, 1e15])
def test_every_number_survives(instruction_set: str, zero: int, scale: float) -> None:
    quantum = Quantum(scale, zero)
    numbers = np.arange(256)
    x = np.broadcast_to(((numbers - zero) * np.float32(scale)).astype(np.float32), (1, 16, 256)).copy()
    found = run_native_uint8(identity_case(x), PLAIN, (quantum, quantum, quantum), instruction_set=instruction_set)
    np.testing.assert_array_equal(found[0], np.broadcast_to(numbers, (16, 256)))


@EVERY_SET
@pytest.mark.parametrize("zero", [0, 100, 255])
@pytest.mark.parametrize("factor", [2.0, 0.5, 0.0625])
def test_ties_go_to_even_and_the_rest_saturates(instruction_set: str, zero: int, factor: float) -> None:
    x = np.broadcast_to((np.arange(256) - 128).astype(np.float32) * 0.25, (1, 16, 256)).copy()
    quanta = Quantum(0.25, 128), Quantum(1.0, 0), Quantum(0.25 * factor, zero)
    for form in (PLAIN, RELU):
        found = run_native_uint8(identity_case(x), form, quanta, instruction_set=instruction_set)
        values = np.maximum(x, 0) if form.relu else x
        np.testing.assert_array_equal(found, np.clip(np.rint(values / (0.25 * factor)) + zero, 0, 255))


@EVERY_SET
@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 3 * 99), max_size=4),
    components=st.sampled_from([1, 4, 11]),
    channels=st.sampled_from([16, 48, 256]),
    in_place=st.booleans(),
)
def test_the_work_may_be_cut_and_the_output_be_the_input(
    instruction_set: str, cuts: list[int], components: int, channels: int, in_place: bool
) -> None:
    quanta = Quantum(0.05, 100), Quantum(0.02, 7), Quantum(0.05, 3)
    case = quantized_case(random_case(7, 3, channels, components, (9, 11), 0.0, alike=False), *quanta[:2])
    whole = run_native_uint8(case, ADD_RELU, quanta, instruction_set=instruction_set)
    parts = run_native_uint8(case, ADD_RELU, quanta, instruction_set=instruction_set, cuts=cuts, in_place=in_place)
    np.testing.assert_array_equal(parts, whole)


@EVERY_SET
@pytest.mark.parametrize("components", [1, 4, 12])
def test_a_pixel_too_large_to_square_becomes_zero_and_no_other(instruction_set: str, components: int) -> None:
    quanta = Quantum(1e30, 128), Quantum(1.0, 0), Quantum(0.01, 77)
    case = random_case(2, 2, 16, components, (3, 3), 0.0, alike=False)
    case.x[:] = 0.0
    clean = run_native_uint8(case, PLAIN, quanta, instruction_set=instruction_set)
    case.x[1, 2, 0, 1] = np.float32(1e30)
    found = run_native_uint8(case, PLAIN, quanta, instruction_set=instruction_set)
    assert (clean != 77).any()
    assert (found[1, :, 0, 1] == 77).all()
    clean[1, :, 0, 1] = 77
    np.testing.assert_array_equal(found, clean)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"block": 16}, "neither blocks nor a posterior"),
        ({"posterior": 1}, "neither blocks nor a posterior"),
        ({"quanta": (Quantum(0.0, 0), Quantum(1.0, 0), Quantum(1.0, 0))}, "scales above zero"),
        ({"quanta": (Quantum(1.0, 0), Quantum(1.0, 0), Quantum(float("nan"), 0))}, "scales above zero"),
        ({"quanta": (Quantum(1.0, 0), Quantum(1.0, 0), Quantum(float("inf"), 0))}, "scales above zero"),
        ({"quanta": (Quantum(1.0, 0), Quantum(1.0, 0), Quantum(1.0, 256))}, "zero points from 0 to 255"),
        ({"quanta": (Quantum(1.0, -1), Quantum(1.0, 0), Quantum(1.0, 0))}, "zero points from 0 to 255"),
        ({"residual": 1, "quanta": (Quantum(1.0, 1), Quantum(-1.0, 0), Quantum(1.0, 0))}, "scales above zero"),
    ],
)
def test_wrong_numbers_are_refused_with_a_sentence(change: dict[str, object], sentence: str) -> None:
    case = random_case(0, 2, 16, 2, (4,), 0.0, alike=False)
    x, y = np.zeros((2, 4, 16), np.uint8), np.zeros((2, 4, 16), np.uint8)
    arguments: dict[str, object] = {
        "data_type": UINT8,
        "images": 2,
        "pixels": 4,
        "x": x.ctypes.data,
        "y": y.ctypes.data,
        "quanta": (Quantum(1.0, 0), Quantum(1.0, 0), Quantum(1.0, 0)),
    }
    with native_layer(case) as layer, pytest.raises(ValueError, match=sentence):
        layer.forward(**(arguments | change))  # type: ignore[arg-type]


@EVERY_SET
def test_channels_that_fill_no_vector_are_refused(instruction_set: str) -> None:
    case = random_case(0, 1, 18, 2, (4,), 0.0, alike=False)
    quanta = Quantum(1.0, 0), Quantum(1.0, 0), Quantum(1.0, 0)
    with pytest.raises(ValueError, match="multiple of 4, 8 or 16"):
        run_native_uint8(quantized_case(case, *quanta[:2]), PLAIN, quanta, instruction_set=instruction_set)
