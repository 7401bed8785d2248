"""``torch.ops.cbn`` over the native library: the same answers as the portable operations, and when it steps aside."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cbn_deploy.kernels  # noqa: F401 - registers torch.ops.cbn
from cbn_deploy.kernels import cuda, native
from export.op import PLAIN, TABLES
from tests.cbn_deploy.kernels.native_cases import library
from tests.cbn_deploy.kernels.test_native_library import check
from tests.export.op_cases import Case, random_case


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> tuple[object, ...]:
    x = torch.from_numpy(case.x).to(dtype)
    return (x, *(torch.from_numpy(case.tables[name]) for name in TABLES), case.epsilon, case.density_scale)


@settings(max_examples=60, deadline=None)
@given(
    case=st.builds(
        random_case,
        seed=st.integers(0, 2**32 - 1),
        batch=st.integers(1, 4),
        channels=st.integers(1, 70),
        components=st.integers(1, 16),
        spatial=st.sampled_from([(), (5,), (1, 1), (7, 9)]),
        extremity=st.sampled_from([0.0, 0.3, 1.0]),
        alike=st.booleans(),
    )
)
def test_the_op_is_the_formula(case: Case) -> None:
    library()
    y, posterior = torch.ops.cbn.compound_batch_norm_posterior(*arguments(case))
    check(case, PLAIN, [y.numpy(), posterior.numpy()])
    torch.testing.assert_close(torch.ops.cbn.compound_batch_norm(*arguments(case)), y, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_type(dtype: torch.dtype) -> None:
    library()
    case = random_case(1, 2, 8, 4, (5, 5), 0.0, alike=False)
    y, posterior = torch.ops.cbn.compound_batch_norm_posterior(*arguments(case, dtype))
    assert (y.dtype, posterior.dtype) == (dtype, torch.float32)
    torch.library.opcheck(torch.ops.cbn.compound_batch_norm, arguments(case, dtype))


def test_opcheck() -> None:
    case = random_case(1, 2, 8, 4, (5, 5), 0.0, alike=False)
    torch.library.opcheck(torch.ops.cbn.compound_batch_norm, arguments(case))
    torch.library.opcheck(torch.ops.cbn.compound_batch_norm_posterior, arguments(case))


def test_it_steps_aside_for_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    case = random_case(2, 2, 8, 4, (5, 5), 0.0, alike=False)
    x, *rest = arguments(case)
    assert isinstance(x, torch.Tensor)
    assert native.compound_batch_norm(x, *rest, with_posterior=False) is not None  # type: ignore[arg-type]
    for other in (x.double(), x.to(memory_format=torch.channels_last), x[:, :, ::2]):
        assert native.compound_batch_norm(other, *rest, with_posterior=False) is None  # type: ignore[arg-type]
        assert torch.isfinite(torch.ops.cbn.compound_batch_norm(other, *rest)).all()
    expected = torch.ops.cbn.compound_batch_norm(x, *rest)
    monkeypatch.setenv("CBN_DISABLE_NATIVE", "1")
    assert native.compound_batch_norm(x, *rest, with_posterior=False) is None  # type: ignore[arg-type]
    torch.testing.assert_close(torch.ops.cbn.compound_batch_norm(x, *rest), expected)


def test_tables_that_do_not_fit_are_refused() -> None:
    case = random_case(3, 2, 8, 4, (5, 5), 0.0, alike=False)
    x, tau, mean, *rest = arguments(case)
    assert isinstance(x, torch.Tensor)
    with pytest.raises(ValueError, match=r"expected x \(B, D"):
        torch.ops.cbn.compound_batch_norm(x[:, :7].contiguous(), tau, mean, *rest)
    with pytest.raises(ValueError, match=r"expected x \(B, D"):
        torch.ops.cbn.compound_batch_norm(x, tau, mean[:3], *rest)  # type: ignore[index]


def test_it_works_under_compile() -> None:
    case = random_case(4, 2, 8, 4, (5, 5), 0.0, alike=False)
    values = arguments(case)
    expected = torch.ops.cbn.compound_batch_norm(*values)
    compiled = torch.compile(lambda *given: torch.ops.cbn.compound_batch_norm(*given) + 1.0, backend="eager")
    torch.testing.assert_close(compiled(*values), expected + 1.0, rtol=0, atol=0)


@pytest.mark.parametrize("own_kernels", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_the_densities_in_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, own_kernels: bool
) -> None:
    if not own_kernels:
        monkeypatch.setattr(native, "compound_batch_norm", lambda *_, **__: None)
    layer, many = (arguments(random_case(3, 2, 64, m, (5, 5), 0.0, alike=False), dtype) for m in (4, 17))
    expected = torch.ops.cbn.compound_batch_norm_posterior(*layer)
    expected_of_many, _ = cuda.compound_batch_norm(*many, with_posterior=False)  # too many for a Triton kernel
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.ops.cbn.compound_batch_norm_posterior(*layer)
        y = torch.ops.cbn.compound_batch_norm(*layer)
        of_many, _ = cuda.compound_batch_norm(*many, with_posterior=False)
    for actual, before in zip((*found, y, of_many), (*expected, expected[0], expected_of_many), strict=True):
        assert actual.dtype == before.dtype
        torch.testing.assert_close(actual, before, rtol=0, atol=0)
