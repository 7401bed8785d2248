"""The Triton inference kernel in Triton's interpreter against the float64 formula.

Run by test_triton.py in a process of its own: TRITON_INTERPRET must be set before Triton is first imported.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cbn_deploy.kernels.triton import operator
from cbn_deploy.kernels.triton.launch import ForwardLaunch, forward_launch
from cbn_deploy.native_library import BFLOAT16, FLOAT16, FLOAT32
from export.op import ADD_RELU, FORMS, PLAIN, TABLES, OpForm
from export.rounding import OpTables
from export.tensorrt.pack_tables import packed_tables
from tests.cbn_deploy.kernels.test_native_library import check, stored_case
from tests.export.op_cases import UNIT, Case, random_case
from tests.reference.tolerances import TOLERANCES, Tolerance

# numpy computes the lanes past the last pixel too, and tells of overflow and NaN where a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
# Shrinking takes minutes in the interpreter; the printed case says enough.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
ROUNDING = {FLOAT16: TOLERANCES["op float16"], BFLOAT16: TOLERANCES["op bfloat16, truncated"]}
TORCH_TYPES = {FLOAT32: torch.float32, FLOAT16: torch.float16, BFLOAT16: torch.bfloat16}
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.op_type)
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
CASES = st.builds(
    random_case,
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    channels=st.integers(1, 40) | st.sampled_from([64, 515]),
    components=st.integers(1, 16),
    spatial=st.sampled_from([(), (1,), (7,), (1, 1), (3, 5), (2, 1, 3), (4, 4)]),
    extremity=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    alike=st.booleans(),
)


def run(
    case: Case,
    form: OpForm,
    *,
    data_type: int = FLOAT32,
    channels_last: bool = False,
    launch: ForwardLaunch | None = None,
) -> list[np.ndarray]:
    """Y and posterior in float32."""
    x, residual = (torch.from_numpy(value).to(TORCH_TYPES[data_type]) for value in (case.x, case.residual))
    if channels_last:
        x, residual = (value.movedim(1, -1).contiguous().movedim(-1, 1) for value in (x, residual))
    tables = [torch.from_numpy(case.tables[name]) for name in TABLES]
    ready = operator.layer_tables(*tables, case.epsilon, case.density_scale)
    y, posterior = operator.forward(
        x,
        ready,
        len(tables[0]),
        residual=residual if form.residual else None,
        relu=form.relu,
        with_posterior=True,
        launch=launch,
    )
    assert y.dtype == x.dtype
    assert y.stride() == x.stride()
    assert posterior is not None
    return [y.float().numpy(), posterior.numpy()]


@EVERY_FORM
@LAYOUTS
@settings(max_examples=6, deadline=None, phases=PHASES)
@given(case=CASES)
def test_float32_is_the_formula(form: OpForm, channels_last: bool, case: Case) -> None:
    check(case, form, run(case, form, channels_last=channels_last))


@pytest.mark.parametrize("data_type", [FLOAT16, BFLOAT16])
@LAYOUTS
@settings(max_examples=5, deadline=None, phases=PHASES)
@given(case=CASES.filter(lambda case: float(np.abs(case.x).max()) < 6e4))
def test_half_precision_is_rounded_once_at_the_end(data_type: int, channels_last: bool, case: Case) -> None:
    case = stored_case(case, data_type)
    expected = case.reference(ADD_RELU)
    if data_type == FLOAT16 and np.abs(expected.y).max() > 6e4:
        return  # beyond float16
    y, posterior = run(case, ADD_RELU, data_type=data_type, channels_last=channels_last)
    allowed = UNIT * expected.y_condition
    assert_within(y, expected.y, allowed, ROUNDING[data_type])
    assert_within(posterior, expected.posterior, UNIT * expected.posterior_condition, TOLERANCES["op float32"])


def assert_within(actual: np.ndarray, expected: np.ndarray, allowed: np.ndarray, row: Tolerance) -> None:
    error = np.abs(actual - expected)
    allowed = allowed + row.rtol * np.abs(expected) + row.atol
    assert (error <= allowed).all(), f"{(error / allowed).max():.3g} times the allowed error"


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("vector", [1, 4])
@LAYOUTS
def test_every_way_to_cut_the_work_gives_the_same(resident: bool, vector: int, channels_last: bool) -> None:
    case = random_case(5, 3, 12, 3, (4, 5), 0.0, alike=False)
    for block_channels, block_pixels in [(16, 4), (4, 16), (2, 64), (8, 8)]:
        launch = ForwardLaunch(
            vector=vector,
            block_channels=block_channels,
            block_pixels=block_pixels,
            chunks=-(-12 // block_channels),
            resident=resident,
            full=12 % block_channels == 0,
            warps=1,
        )
        check(case, ADD_RELU, run(case, ADD_RELU, channels_last=channels_last, launch=launch))


@EVERY_FORM
@LAYOUTS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("components", [1, 4])
def test_a_non_finite_pixel_spoils_itself_only(
    form: OpForm, channels_last: bool, components: int, value: float
) -> None:
    case = random_case(2, 2, 5, components, (3, 3), 0.0, alike=False)
    clean = run(case, form, channels_last=channels_last)
    case.x[1, 2, 0, 1] = value
    outputs = run(case, form, channels_last=channels_last)
    for now, before in zip(outputs, clean, strict=True):
        assert np.isnan(now[1, :, 0, 1]).all()
        untouched = np.ones_like(now, dtype=bool)
        untouched[1, :, 0, 1] = False
        np.testing.assert_array_equal(now[untouched], before[untouched])


@LAYOUTS
def test_a_non_finite_residual_spoils_its_own_element_only(channels_last: bool) -> None:
    case = random_case(2, 2, 5, 4, (6, 6), 0.0, alike=False)
    case.residual[1, 2, 0, 1:3] = np.nan, np.inf
    y, _ = run(case, ADD_RELU, channels_last=channels_last)
    assert np.isnan(y[1, 2, 0, 1])
    assert y[1, 2, 0, 2] == np.inf
    assert np.isfinite(y).sum() == y.size - 2


@EVERY_FORM
def test_a_dead_component_gets_exactly_nothing(form: OpForm) -> None:
    case = random_case(1, 2, 6, 3, (4,), 0.0, alike=False)
    # The dead component's Gaussian sits exactly on the pixels: only its prior keeps it out.
    case.tables["tau"][:] = [0.0, 0.25, 0.75]
    case.tables["mean"][0] = case.x[0, :, 0]
    y, posterior = run(case, form)
    assert (posterior[:, 0] == 0).all()
    check(case, form, [y, posterior])


@settings(max_examples=5, deadline=None, phases=PHASES)
@given(case=CASES)
def test_tables_made_by_the_exporter_do_as_well(case: Case) -> None:
    # What the TensorRT plugin's kernel is given, made in float64.
    tables = OpTables(**case.tables, epsilon=case.epsilon, density_scale=case.density_scale)
    packed = torch.from_numpy(packed_tables(tables))
    x = torch.from_numpy(case.x)
    y, posterior = operator.forward(x, packed, len(tables.tau), relu=False, with_posterior=True)
    assert posterior is not None
    check(case, PLAIN, [y.numpy(), posterior.numpy()])


def test_priors_count_up_to_a_common_factor() -> None:
    case = random_case(4, 2, 6, 3, (4,), 0.0, alike=False)
    expected = run(case, PLAIN)
    case.tables["tau"] *= 8.0
    for now, before in zip(run(case, PLAIN), expected, strict=True):
        np.testing.assert_allclose(now, before, rtol=1e-5, atol=1e-6)


def test_an_empty_batch_is_empty() -> None:
    case = random_case(4, 2, 6, 3, (4,), 0.0, alike=False)
    case = Case(case.x[:0], case.residual[:0], case.tables, case.epsilon, case.density_scale)
    assert [value.shape for value in run(case, PLAIN)] == [(0, 6, 4), (0, 3, 4)]


def test_a_layer_too_wide_for_registers_is_read_twice() -> None:
    case = random_case(6, 1, 1030, 2, (5,), 0.0, alike=False)
    launch = forward_launch(components=2, channels=1030, pixels=5, item_size=4, channels_last=False)
    assert (launch.resident, launch.full) == (False, False)
    check(case, PLAIN, run(case, PLAIN))
