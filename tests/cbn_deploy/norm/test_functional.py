"""The equations against a float64 numpy oracle and against scikit-learn's GaussianMixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.mixture import GaussianMixture

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


shapes = st.tuples(st.integers(1, 4), st.integers(1, 9)).flatmap(
    lambda bd: st.lists(st.integers(1, 5), max_size=3).map(lambda spatial: (*bd, *spatial))
)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, components=st.integers(1, 6), scale=st.sampled_from([1.0, 0.3, 0.05]), seed=st.integers(0, 99))
def test_posterior_moments_and_output_agree_with_the_oracle(shape, components, scale, seed) -> None:
    p = problem(seed, shape, components)
    t = {name: torch.from_numpy(value) for name, value in p.items()}
    flat = oracle.pixels(p["x"])
    expected_w = oracle.posterior(flat, p["tau"], p["mean"], p["var"], EPS, scale)

    pixels = functional.centred_pixels(t["x"])
    w = functional.posterior(pixels, t["tau"], t["mean"], t["var"], EPS, scale)
    assert_allclose(oracle.pixels(w.numpy()), expected_w, **tolerance("float64"))

    moments = functional.weighted_moments(pixels, w)
    mass, mean, var = oracle.m_step(flat, expected_w)
    solid = mass > 1e-6  # a component that claims nothing has no mean to compare
    assert_allclose(moments.mass.numpy(), mass, **tolerance("float64"))
    assert_allclose(moments.mean.numpy()[solid], mean[solid], **tolerance("float64"))
    assert_allclose(moments.var.numpy()[solid], var[solid], **tolerance("float64"))

    y = functional.compound_normalize(pixels, w, t["mean"], t["var"], t["scale"], t["bias"], EPS)
    expected = oracle.unpixels(
        oracle.compound(flat, expected_w, p["mean"], p["var"], p["scale"], p["bias"], EPS), shape
    )
    assert_allclose(y.numpy(), expected, **tolerance("float64"))


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_naive_formula_is_the_oracle_too(scale: float) -> None:
    p = problem(3, (3, 6, 4, 5), 4)
    tables = [torch.from_numpy(p[name]) for name in ("tau", "mean", "var", "scale", "bias")]
    y = functional.compound_batch_norm_naive(torch.from_numpy(p["x"]), *tables, EPS, scale)
    flat = oracle.pixels(p["x"])
    w = oracle.posterior(flat, p["tau"], p["mean"], p["var"], EPS, scale)
    expected = oracle.compound(flat, w, p["mean"], p["var"], p["scale"], p["bias"], EPS)
    assert_allclose(y.numpy(), oracle.unpixels(expected, p["x"].shape), **tolerance("float64"))


def test_posterior_and_m_step_agree_with_scikit_learn() -> None:
    """One EM iteration of GaussianMixture(covariance_type="diag") from given parameters is our E-step and M-step."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(m, 1.0, (200, 5)) for m in (-2.0, 0.0, 3.0)])
    mean, tau = rng.normal(0, 2, (3, 5)), np.array([0.2, 0.5, 0.3])
    precision = rng.uniform(0.5, 2.0, (3, 5))
    model = GaussianMixture(
        3,
        covariance_type="diag",
        reg_covar=0.0,
        max_iter=1,
        weights_init=tau,
        means_init=mean,
        precisions_init=precision,
    )
    with pytest.warns(UserWarning, match="did not converge"):
        model.fit(x)
    before = GaussianMixture(3, covariance_type="diag")
    before.weights_, before.means_, before.covariances_ = tau, mean, 1 / precision
    before.precisions_cholesky_ = np.sqrt(precision)

    image = torch.from_numpy(x.T.reshape(1, 5, 20, 30).copy())
    pixels = functional.centred_pixels(image)
    tables = (torch.from_numpy(t) for t in (tau, mean, 1 / precision))
    w = functional.posterior(pixels, *tables, 0.0)
    assert_allclose(oracle.pixels(w.numpy()), before.predict_proba(x), **tolerance("float64"))
    moments = functional.weighted_moments(pixels, w)
    assert_allclose((moments.mass / moments.mass.sum()).numpy(), model.weights_, **tolerance("float64"))
    assert_allclose(moments.mean.numpy(), model.means_, **tolerance("float64"))
    assert_allclose(moments.var.numpy(), model.covariances_, **tolerance("float64"))


def test_group_moments_and_split_normalize_agree_with_the_oracle() -> None:
    p = problem(5, (6, 4, 3, 3), 3)
    x, groups = torch.from_numpy(p["x"]), torch.tensor([0, 2, 2, 0, 2, 0])
    moments = functional.group_moments(x, groups, 3)
    assert moments.mass.tolist() == [27.0, 0.0, 27.0]
    for g in (0, 2):
        members = oracle.pixels(p["x"][groups.numpy() == g])
        assert_allclose(moments.mean[g].numpy(), members.mean(0), **tolerance("float64"))
        assert_allclose(moments.var[g].numpy(), members.var(0), **tolerance("float64"))
    mean, var, scale, bias = (torch.from_numpy(p[n]) for n in ("mean", "var", "scale", "bias"))
    y = functional.split_normalize(x, groups, mean, var, scale, bias, EPS)
    for image, g in enumerate(groups.tolist()):
        member = oracle.pixels(p["x"][image : image + 1])
        one = oracle.compound(
            member, np.ones((9, 1)), p["mean"][[g]], p["var"][[g]], p["scale"][[g]], p["bias"][[g]], EPS
        )
        assert_allclose(y[image].numpy(), oracle.unpixels(one, (1, 4, 3, 3))[0], **tolerance("float64"))


def test_batch_moments_and_moving_average() -> None:
    """Eq. (1)-(4): numpy's mean and biased variance; momentum is the weight of the new value."""
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 2))
    mean, var = functional.batch_moments(torch.from_numpy(x))
    assert_allclose(mean.numpy(), oracle.pixels(x).mean(0), **tolerance("float64"))
    assert_allclose(var.numpy(), oracle.pixels(x).var(0), **tolerance("float64"))
    old, new = torch.tensor([2.0]), torch.tensor([4.0])
    assert functional.moving_average(old, new, 0.9).item() == pytest.approx(oracle.ema(2.0, 4.0, paper_lambda=0.1))


def test_moments_of_a_large_common_offset_lose_nothing() -> None:
    """float32 sums about the batch mean: an offset of 1e4 must not swamp a variance of 1."""
    rng = np.random.default_rng(1)
    x32 = (rng.normal(size=(8, 3, 6, 6)) + 1e4).astype(np.float32)
    w = rng.dirichlet(np.ones(2), (8, 36)).transpose(0, 2, 1)
    moments = functional.weighted_moments(
        functional.centred_pixels(torch.from_numpy(x32)), torch.from_numpy(w.astype(np.float32))
    )
    _, mean, var = oracle.m_step(oracle.pixels(x32.astype(np.float64)), w.transpose(0, 2, 1).reshape(-1, 2))
    assert_allclose(moments.mean.numpy(), mean, rtol=1e-7)
    assert_allclose(moments.var.numpy(), var, **tolerance("float32 layer"))
