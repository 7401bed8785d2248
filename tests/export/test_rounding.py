"""The error model: above what float32 does, below what a mistake does."""

from __future__ import annotations

import numpy as np
import pytest

from export.limits import LIMITS
from export.op import PLAIN
from export.rounding import OpTables, allowed_error
from tests.export.op_cases import Case, op_model, random_case, run_onnxruntime


def tables(case: Case) -> OpTables:
    return OpTables(**case.tables, epsilon=case.epsilon, density_scale=case.density_scale)


def allowed(case: Case) -> np.ndarray:
    pixels = np.moveaxis(case.x.astype(np.float64), 1, -1)
    flat = allowed_error(pixels.reshape(-1, pixels.shape[-1]), tables(case), LIMITS["op"].value)
    return np.moveaxis(flat.reshape(pixels.shape), -1, 1)


@pytest.mark.parametrize("extremity", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_float32_stays_within_it(extremity: float, seed: int) -> None:
    case = random_case(seed, 2, 48, 5, (6,), extremity, alike=False)
    y = run_onnxruntime(op_model(case, PLAIN), case.feeds(PLAIN))[0]
    assert (np.abs(y - case.reference(PLAIN).y) <= allowed(case) + 1e-30).all()


@pytest.mark.parametrize("seed", range(5))
def test_it_is_small_where_the_problem_is_well_conditioned(seed: int) -> None:
    case = random_case(seed, 2, 16, 4, (6,), 0.0, alike=False)
    assert np.median(allowed(case)) < 1e-3


@pytest.mark.parametrize("mistake", ["tau", "mean", "var", "scale", "bias", "epsilon", "density_scale"])
def test_a_mistake_exceeds_it(mistake: str) -> None:
    case = random_case(7, 4, 8, 3, (16,), 0.0, alike=False)
    wrong = {name: table.copy() for name, table in case.tables.items()}
    attributes = {"epsilon": case.epsilon, "density_scale": case.density_scale}
    if mistake in wrong:
        wrong[mistake][0] *= 1.05
    else:
        attributes[mistake] *= 1.05 if mistake == "density_scale" else 100
    y = run_onnxruntime(op_model(Case(case.x, case.residual, wrong, **attributes), PLAIN), case.feeds(PLAIN))[0]
    assert (np.abs(y - case.reference(PLAIN).y) > allowed(case)).any()


def test_nothing_is_promised_where_float32_overflows() -> None:
    """(x - m0)^2 above 3.4e38 has no float32; one such channel makes its pixel incomparable, and only its pixel."""
    tables = OpTables(
        tau=np.array([0.5, 0.5], np.float32),
        mean=np.zeros((2, 2), np.float32),
        var=np.array([[1, 1], [2, 2]], np.float32),
        scale=np.ones((2, 2), np.float32),
        bias=np.zeros((2, 2), np.float32),
        epsilon=1e-5,
        density_scale=1.0,
    )
    allowed = allowed_error(np.array([[1e20, 0.0], [1.0, 1.0]]), tables, 32.0)
    assert np.isinf(allowed[0]).all()
    assert np.isfinite(allowed[1]).all()
