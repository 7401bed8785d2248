"""The native library against the float64 formula: every form, type and instruction set, on extreme statistics."""

from __future__ import annotations

import dataclasses
import functools
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cbn_deploy
import cbn_deploy.native_library as native_module
from cbn_deploy.native_library import BFLOAT16, FLOAT16, FLOAT32, NativeLayer, native_library
from export.op import ADD_RELU, FORMS, PLAIN, OpForm
from tests.cbn_deploy.kernels.native_cases import INSTRUCTION_SETS, NUMPY_TYPES, library, native_layer, run_native
from tests.export.op_cases import UNIT, Case, random_case
from tests.reference.tolerances import TOLERANCES

SPATIAL = [(), (1,), (7,), (1, 1), (3, 5), (2, 1, 3), (4, 4), (7, 7), (8, 8), (9, 15), (16, 20)]
CASES = st.builds(
    random_case,
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 5),
    channels=st.integers(1, 70) | st.sampled_from([64, 128, 129]),
    components=st.integers(1, 18),
    spatial=st.sampled_from(SPATIAL),
    extremity=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    alike=st.booleans(),
)
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.op_type)
# Each instruction set with the layouts that it takes: planar, or blocks of so many channels.
LAYOUTS = [
    (name, block)
    for name, lanes in (("baseline", 4), ("avx2", 8), ("avx512", 16))
    for block in (0, 8, 16)
    if name in INSTRUCTION_SETS and block % lanes == 0
]
EVERY_LAYOUT = pytest.mark.parametrize(("instruction_set", "block"), LAYOUTS)
EVERY_SET = pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
# The rows of the tolerance table for one rounding to the stored type.
ROUNDING = {FLOAT32: None, FLOAT16: TOLERANCES["op float16"], BFLOAT16: TOLERANCES["op bfloat16"]}


def stored_case(case: Case, data_type: int) -> Case:
    """The case as the stored type holds it."""
    numpy_type = NUMPY_TYPES[data_type]
    with np.errstate(over="ignore"):
        x, residual = (value.astype(numpy_type).astype(np.float32) for value in (case.x, case.residual))
    return dataclasses.replace(case, x=x, residual=residual)


def check(case: Case, form: OpForm, outputs: list[np.ndarray], data_type: int = FLOAT32) -> None:
    expected = case.reference(form)
    row = ROUNDING[data_type]
    allowed = UNIT * expected.y_condition + TOLERANCES["op float32"].atol
    if row is not None:
        # What is rounded to the type is the computed value, its own error included.
        allowed = allowed * (1 + row.rtol) + row.rtol * np.abs(expected.y) + row.atol
    y_error = np.abs(outputs[0] - expected.y)
    assert (y_error <= allowed).all(), f"{(y_error / allowed).max():.3g} times the allowed error of Y"
    allowed = UNIT * expected.posterior_condition + TOLERANCES["op float32"].atol
    error = np.abs(outputs[1] - expected.posterior)
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} times the allowed error of the posterior"


@EVERY_LAYOUT
@EVERY_FORM
@settings(max_examples=60, deadline=None)
@given(case=CASES)
def test_float32_is_the_formula(form: OpForm, instruction_set: str, block: int, case: Case) -> None:
    check(case, form, run_native(case, form, instruction_set=instruction_set, block=block))


@EVERY_SET
@EVERY_FORM
@pytest.mark.parametrize("data_type", [FLOAT16, BFLOAT16])
@settings(max_examples=20, deadline=None)
@given(case=CASES.filter(lambda case: float(np.abs(case.x).max()) < 6e4))
def test_half_precision_is_rounded_once_at_the_end(
    form: OpForm, instruction_set: str, data_type: int, case: Case
) -> None:
    case = stored_case(case, data_type)
    expected = case.reference(form)
    if data_type == FLOAT16 and np.abs(expected.y).max() > 6e4:
        return  # beyond float16
    check(case, form, run_native(case, form, instruction_set=instruction_set, data_type=data_type), data_type)


@EVERY_SET
@pytest.mark.parametrize("data_type", [FLOAT16, BFLOAT16])
def test_every_half_number_survives(instruction_set: str, data_type: int) -> None:
    # One component with mean 0, deviation 1, scale 1 and bias 0 returns what it reads.
    ones, zeros = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    tables = {"tau": np.ones(1, np.float32), "mean": zeros, "var": ones, "scale": ones, "bias": zeros}
    numpy_type = NUMPY_TYPES[data_type]
    x = np.arange(2**16, dtype=np.uint16).view(numpy_type).astype(np.float32)
    case = Case(x[None, None], x[None, None], tables, epsilon=0.0, density_scale=1.0)
    y, _ = run_native(case, PLAIN, instruction_set=instruction_set, data_type=data_type)
    squarable = np.abs(x) <= np.sqrt(np.finfo(np.float32).max)
    np.testing.assert_array_equal(y[0, 0][squarable], x[squarable])
    assert np.isnan(y[0, 0][~squarable]).all()


@EVERY_SET
@EVERY_FORM
@pytest.mark.parametrize("data_type", [FLOAT32, FLOAT16])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), spatial=st.sampled_from(SPATIAL), components=st.sampled_from([1, 3, 4, 8, 11]))
def test_cutting_the_work_changes_nothing(
    form: OpForm,
    instruction_set: str,
    data_type: int,
    data: st.DataObject,
    spatial: tuple[int, ...],
    components: int,
) -> None:
    case = random_case(7, 3, 9, components, spatial, 0.0, alike=False)
    cuts = data.draw(st.lists(st.integers(0, 3 * math.prod(spatial)), max_size=4))
    whole = run_native(case, form, instruction_set=instruction_set, data_type=data_type)
    for now, before in zip(
        run_native(case, form, instruction_set=instruction_set, data_type=data_type, cuts=cuts), whole, strict=True
    ):
        np.testing.assert_array_equal(now, before)


@EVERY_LAYOUT
@pytest.mark.parametrize("components", [1, 4, 9])
def test_a_tensor_beyond_the_caches(instruction_set: str, block: int, components: int) -> None:
    # Half a million values: the kernels fetch ahead, also behind the end of the tensor.
    case = random_case(14, 1, 64, components, (92, 93), 0.3, alike=False)
    check(case, ADD_RELU, run_native(case, ADD_RELU, instruction_set=instruction_set, block=block))


@EVERY_LAYOUT
@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 3 * 99), max_size=4),
    components=st.sampled_from([1, 3, 4, 8, 11]),
    channels=st.sampled_from([9, 16, 40]),
    in_place=st.booleans(),
)
def test_layouts_may_be_cut_and_overwritten(
    instruction_set: str, block: int, cuts: list[int], components: int, channels: int, in_place: bool
) -> None:
    case = random_case(7, 3, channels, components, (9, 11), 0.0, alike=False)
    whole = run_native(case, ADD_RELU, instruction_set=instruction_set, block=block)
    options = {"instruction_set": instruction_set, "block": block, "cuts": cuts, "in_place": in_place}
    for now, before in zip(run_native(case, ADD_RELU, **options), whole, strict=True):
        np.testing.assert_array_equal(now, before)


@EVERY_SET
@pytest.mark.parametrize("spatial", [(1,), (5,), (7, 7), (8, 8)])
@pytest.mark.parametrize("data_type", [FLOAT32, BFLOAT16])
def test_the_output_may_be_the_input(instruction_set: str, spatial: tuple[int, ...], data_type: int) -> None:
    case = random_case(8, 3, 9, 4, spatial, 0.0, alike=False)
    apart = run_native(case, ADD_RELU, instruction_set=instruction_set, data_type=data_type)
    together = run_native(case, ADD_RELU, instruction_set=instruction_set, data_type=data_type, in_place=True)
    for now, before in zip(together, apart, strict=True):
        np.testing.assert_array_equal(now, before)


@EVERY_LAYOUT
@EVERY_FORM
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("components", [1, 2, 4, 12])
@pytest.mark.parametrize("spatial", [(3, 3), (6, 6)])
def test_a_non_finite_pixel_spoils_itself_only(
    form: OpForm, instruction_set: str, block: int, components: int, value: float, spatial: tuple[int, ...]
) -> None:
    case = random_case(2, 2, 5, components, spatial, 0.0, alike=False)
    clean = run_native(case, form, instruction_set=instruction_set, block=block)
    case.x[1, 2, 0, 1] = value
    outputs = run_native(case, form, instruction_set=instruction_set, block=block)
    for now, before in zip(outputs, clean, strict=True):
        assert np.isnan(now[1, :, 0, 1]).all()
        untouched = np.ones_like(now, dtype=bool)
        untouched[1, :, 0, 1] = False
        np.testing.assert_array_equal(now[untouched], before[untouched])


@EVERY_LAYOUT
def test_a_non_finite_residual_spoils_its_own_element_only(instruction_set: str, block: int) -> None:
    case = random_case(2, 2, 5, 4, (6, 6), 0.0, alike=False)
    case.residual[1, 2, 0, 1:3] = np.nan, np.inf
    y, _ = run_native(case, ADD_RELU, instruction_set=instruction_set, block=block)
    assert np.isnan(y[1, 2, 0, 1])
    assert y[1, 2, 0, 2] == np.inf
    assert np.isfinite(y).sum() == y.size - 2


@EVERY_LAYOUT
@EVERY_FORM
def test_a_dead_component_gets_exactly_nothing(form: OpForm, instruction_set: str, block: int) -> None:
    case = random_case(1, 2, 6, 3, (4,), 0.0, alike=False)
    # The dead component's Gaussian sits exactly on the pixels: only its prior keeps it out.
    case.tables["tau"][:] = [0.0, 0.25, 0.75]
    case.tables["mean"][0] = case.x[0, :, 0]
    y, posterior = run_native(case, form, instruction_set=instruction_set, block=block)
    assert (posterior[:, 0] == 0).all()
    check(case, form, [y, posterior])


@EVERY_LAYOUT
@pytest.mark.parametrize("channels", [1, 2048])
def test_posteriors_far_apart_and_many_channels(instruction_set: str, block: int, channels: int) -> None:
    # Logits from 0 to below -87, where float32's exp leaves the normal numbers.
    x = np.linspace(0, 12, 500, dtype=np.float32)
    case = Case(
        x=np.broadcast_to(x, (1, channels, 500)).copy(),
        residual=np.zeros((1, channels, 500), np.float32),
        tables={
            "tau": np.array([0.5, 0.5], np.float32),
            "mean": np.stack([np.zeros(channels), np.ones(channels)]).astype(np.float32) * 8,
            "var": np.ones((2, channels), np.float32),
            "scale": np.ones((2, channels), np.float32),
            "bias": np.zeros((2, channels), np.float32),
        },
        epsilon=1e-5,
        density_scale=1.0 / channels,
    )
    check(case, PLAIN, run_native(case, PLAIN, instruction_set=instruction_set, block=block))


def test_threads_may_share_a_layer() -> None:
    case = random_case(9, 8, 16, 4, (16, 16), 0.0, alike=False)
    expected = run_native(case, PLAIN)[0]
    y = np.zeros_like(case.x)
    edges = list(range(0, 8 * 256 + 1, 64))
    with native_layer(case) as layer, ThreadPoolExecutor(8) as pool:

        def part(begin: int) -> None:
            layer.forward(FLOAT32, 8, 256, case.x.ctypes.data, y.ctypes.data, begin=begin, end=begin + 64)

        list(pool.map(part, edges[:-1]))
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"components": 0}, "1 to 256 components"),
        ({"components": 257}, "1 to 256 components"),
        ({"channels": 0}, "at least one channel"),
        ({"tables": (0, 0, 0, 0, 0)}, "is missing"),
        ({"instruction_set": "mmx"}, "cannot run here"),
    ],
)
def test_a_wrong_layer_is_refused_with_a_sentence(change: dict[str, object], sentence: str) -> None:
    table = np.ones(8, np.float32)
    arguments: dict[str, object] = {
        "components": 2,
        "channels": 3,
        "tables": (table.ctypes.data,) * 5,
        "epsilon": 1e-5,
        "density_scale": 1.0,
    }
    with pytest.raises(ValueError, match=sentence):
        NativeLayer(library(), **(arguments | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"data_type": 11}, "float32"),
        ({"images": -1, "end": 0}, "must not be negative"),
        ({"begin": 3, "end": 2}, "range of pixels"),
        ({"end": 10}, "range of pixels"),
        ({"begin": -1}, "range of pixels"),
        ({"x": 0}, "is missing"),
        ({"block": 12}, "blocks of 8 or 16"),
        ({"block": 32}, "blocks of 8 or 16"),
        ({"block": 16, "data_type": FLOAT16}, "Blocked tensors must be float32"),
    ],
)
def test_wrong_tensors_are_refused_with_a_sentence(change: dict[str, object], sentence: str) -> None:
    case = random_case(0, 2, 3, 2, (4,), 0.0, alike=False)
    arguments: dict[str, object] = {
        "data_type": FLOAT32,
        "images": 2,
        "pixels": 4,
        "x": case.x.ctypes.data,
        "y": case.residual.ctypes.data,
    }
    with native_layer(case) as layer, pytest.raises(ValueError, match=sentence):
        layer.forward(**(arguments | change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer or the tensors are missing"):
        layer.forward(**arguments)  # type: ignore[arg-type]


def test_no_pixels_are_no_error() -> None:
    case = random_case(0, 1, 3, 2, (4,), 0.0, alike=False)
    with native_layer(case) as layer:
        layer.forward(FLOAT32, 0, 4, 0, 0)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    found = library()
    monkeypatch.setenv("CBN_INSTRUCTION_SET", "baseline")
    assert found.instruction_set == "baseline"
    monkeypatch.setenv("CBN_INSTRUCTION_SET", "mmx")
    assert found.instruction_set is None
    monkeypatch.setenv("CBN_DISABLE_NATIVE", "1")
    assert native_library() is None
    monkeypatch.setenv("CBN_DISABLE_NATIVE", "0")
    assert native_library() is found
    assert found.version in {cbn_deploy.__version__, "unpackaged"}


def test_an_absent_library_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(native_module, "_load", functools.cache(native_module._load.__wrapped__))
    monkeypatch.setattr(cbn_deploy, "__path__", [str(tmp_path)])
    assert native_library() is None
    assert native_library() is None
    assert [record.getMessage() for record in caplog.records] == [
        "libcbn was not built (no C++ compiler at installation); the layer is computed portably."
    ]


def test_a_damaged_library_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "kernels" / "native" / "libcbn.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no library")
    monkeypatch.setattr(native_module, "_load", functools.cache(native_module._load.__wrapped__))
    monkeypatch.setattr(cbn_deploy, "__path__", [str(tmp_path)])
    assert native_library() is None
    assert str(path) in caplog.text
