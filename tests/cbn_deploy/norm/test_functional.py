"""The equations against a float64 numpy oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from cbn_deploy.norm import functional
from tests.reference import mixture_float64 as oracle
from tests.reference.tolerances import tolerance

EPS = 1e-5


def problem(seed: int, shape: tuple[int, ...], components: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tables = (components, shape[1])
    return {
        "x": rng.normal(0.5, 2.0, shape),
        "tau": rng.dirichlet(np.ones(components)),
        "mean": rng.normal(0.0, 1.5, tables),
        "var": rng.uniform(0.2, 3.0, tables),
        "scale": rng.normal(1.0, 0.3, tables),
        "bias": rng.normal(0.0, 0.3, tables),
    }


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_naive_formula_is_the_oracle_too(scale: float) -> None:
    p = problem(3, (3, 6, 4, 5), 4)
    tables = [torch.from_numpy(p[name]) for name in ("tau", "mean", "var", "scale", "bias")]
    y = functional.compound_batch_norm_naive(torch.from_numpy(p["x"]), *tables, EPS, scale)
    flat = oracle.pixels(p["x"])
    w = oracle.posterior(flat, p["tau"], p["mean"], p["var"], EPS, scale)
    expected = oracle.compound(flat, w, p["mean"], p["var"], p["scale"], p["bias"], EPS)
    assert_allclose(y.numpy(), oracle.unpixels(expected, p["x"].shape), **tolerance("float64"))


def test_group_moments_agree_with_the_oracle() -> None:
    p = problem(5, (6, 4, 3, 3), 3)
    x, groups = torch.from_numpy(p["x"]), torch.tensor([0, 2, 2, 0, 2, 0])
    moments = functional.group_moments(x, groups, 3)
    assert moments.mass.tolist() == [27.0, 0.0, 27.0]
    for g in (0, 2):
        members = oracle.pixels(p["x"][groups.numpy() == g])
        assert_allclose(moments.mean[g].numpy(), members.mean(0), **tolerance("float64"))
        assert_allclose(moments.var[g].numpy(), members.var(0), **tolerance("float64"))


def test_moving_average() -> None:
    """Eq. (3), (4): momentum is the weight of the new value."""
    old, new = torch.tensor([2.0]), torch.tensor([4.0])
    assert functional.moving_average(old, new, 0.9).item() == pytest.approx(oracle.ema(2.0, 4.0, paper_lambda=0.1))
