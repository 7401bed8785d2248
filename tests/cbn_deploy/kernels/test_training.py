"""The training operators in float64: against the oracle, scikit-learn, and autograd through the formula as printed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.mixture import GaussianMixture
from torch import Tensor

from tests.cbn_deploy.kernels.training_cases import EPS, Problem, gradients, naive_step, operator_step, random_problem
from tests.reference import mixture_float64 as oracle
from tests.reference.tolerances import tolerance

OPS = torch.ops.cbn
shapes = st.tuples(st.integers(1, 4), st.integers(1, 9)).flatmap(
    lambda bd: st.lists(st.integers(1, 5), max_size=3).map(lambda spatial: (*bd, *spatial))
)


@settings(max_examples=40, deadline=None)
@given(shape=shapes, components=st.integers(1, 6), scale=st.sampled_from([1.0, 0.3, 0.05]), seed=st.integers(0, 99))
def test_posterior_moments_and_output_agree_with_the_oracle(shape, components, scale, seed) -> None:
    p = random_problem(seed, shape, components)
    t = {name: value.numpy() for name, value in p._asdict().items()}
    flat = oracle.pixels(t["x"])
    expected_w = oracle.posterior(flat, t["tau"], t["mean"], t["var"], EPS, scale)

    w, centre, *logits, mass, mean, var = OPS.mixture_statistics(p.x, p.tau, p.mean, p.var, EPS, scale)
    assert_allclose(oracle.pixels(w.numpy()), expected_w, **tolerance("float64"))
    assert_allclose(centre.numpy(), flat.mean(0), **tolerance("float64"))
    expected_mass, expected_mean, expected_var = oracle.m_step(flat, expected_w)
    solid = expected_mass > 1e-6  # a component that claims nothing has no mean to compare
    assert_allclose(mass.numpy(), expected_mass, **tolerance("float64"))
    assert_allclose(mean.numpy()[solid], expected_mean[solid], **tolerance("float64"))
    assert_allclose(var.numpy()[solid], expected_var[solid], **tolerance("float64"))

    y = OPS.mixture_normalize(p.x, w, centre, *logits, p.mean, p.var, torch.zeros_like(mass), p.scale, p.bias, EPS)
    expected = oracle.compound(flat, expected_w, t["mean"], t["var"], t["scale"], t["bias"], EPS)
    assert_allclose(y.numpy(), oracle.unpixels(expected, shape), **tolerance("float64"))


def test_posterior_and_moments_agree_with_scikit_learn() -> None:
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
    tables = (torch.from_numpy(t) for t in (tau, mean, 1 / precision))
    w, *_, mass, new_mean, new_var = OPS.mixture_statistics(image, *tables, 0.0, 1.0)
    assert_allclose(oracle.pixels(w.numpy()), before.predict_proba(x), **tolerance("float64"))
    assert_allclose((mass / mass.sum()).numpy(), model.weights_, **tolerance("float64"))
    assert_allclose(new_mean.numpy(), model.means_, **tolerance("float64"))
    assert_allclose(new_var.numpy(), model.covariances_, **tolerance("float64"))


@pytest.mark.parametrize("posterior_gradient", [True, False])
@pytest.mark.parametrize("density_scale", [1.0, 0.2])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("components", [1, 2, 4, 7])
@pytest.mark.parametrize("shape", [(3, 5, 3, 5), (7, 4), (2, 3, 1, 1), (2, 1, 4, 3), (2, 3, 2, 3, 2)])
def test_output_and_gradients_are_those_of_the_formula(
    shape: tuple[int, ...], components: int, eps: float, density_scale: float, posterior_gradient: bool
) -> None:
    """Autograd through the paper's formula, batch moments and all, gives the same y and the same gradients."""
    problem = random_problem(1, shape, components)
    policy = (eps, density_scale, posterior_gradient)
    for batch_statistics in (True, False):
        ours = gradients(operator_step, problem, policy, batch_statistics)
        expected = gradients(naive_step, problem, policy, batch_statistics)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, **tolerance("float64 gradient"))


def test_a_component_with_hardly_any_mass_is_a_constant() -> None:
    """Its running statistics normalise its pixels, and x gets no gradient through moments that were not used."""
    problem = random_problem(2, (3, 4, 3, 3), 3)
    problem.mean[1] = 40.0
    policy = (EPS, 1.0, True)
    *_, mass, _, _ = OPS.mixture_statistics(problem.x, problem.tau, problem.mean, problem.var, EPS, 1.0)
    assert mass[1] < 1e-6
    ours, expected = (gradients(step, problem, policy, True) for step in (operator_step, naive_step))
    for a, b in zip(ours, expected, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, **tolerance("float64 gradient"))


@pytest.mark.parametrize("components", [1, 2, 4, 7])
@pytest.mark.parametrize("shape", [(3, 3, 3, 1), (5, 2)])
def test_gradcheck(shape: tuple[int, ...], components: int) -> None:
    problem = random_problem(3, shape, components)

    def step(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return operator_step(problem._replace(x=x, scale=scale, bias=bias), (EPS, 0.5, True), True)

    inputs = [t.clone().requires_grad_() for t in (problem.x, problem.scale, problem.bias)]
    assert torch.autograd.gradcheck(step, inputs)


@pytest.mark.parametrize("components", [1, 3])
def test_gradcheck_of_the_inference_operator(components: int) -> None:
    p = random_problem(4, (2, 3, 3, 2), components)

    def infer(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return OPS.compound_batch_norm(x, p.tau, p.mean, p.var, scale, bias, EPS, 0.5)

    assert torch.autograd.gradcheck(infer, [t.clone().requires_grad_() for t in (p.x, p.scale, p.bias)])
    with pytest.raises(NotImplementedError, match="tau, mean and var"):
        OPS.compound_batch_norm(p.x, p.tau, p.mean.requires_grad_(), p.var, p.scale, p.bias, EPS, 0.5).sum().backward()


def test_second_derivatives_are_refused() -> None:
    problem = random_problem(5, (2, 3, 2, 2), 2)
    x = problem.x.requires_grad_()
    y = operator_step(problem._replace(x=x), (EPS, 1.0, True), True)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        first.sum().backward()


def test_gradients_that_do_not_exist_are_refused() -> None:
    """Rather than zero without a word."""
    p = random_problem(6, (2, 3, 2, 2), 2)
    w, centre, *logits, mass, mean, var = OPS.mixture_statistics(p.x, p.tau, p.mean, p.var, EPS, 1.0)
    tables = (torch.zeros_like(mass), p.scale, p.bias, EPS)
    with pytest.raises(NotImplementedError, match="x, scale and bias only"):
        OPS.mixture_normalize(p.x, w, centre, *logits, mean.requires_grad_(), var, *tables).sum().backward()
    with pytest.raises(NotImplementedError, match="x, scale and bias only"):
        OPS.split_normalize(p.x, torch.tensor([0, 1]), mean, var, *tables).sum().backward()


def test_statistics_carry_no_gradient_by_themselves() -> None:
    p = random_problem(6, (2, 3, 2, 2), 2)
    w, *_ = OPS.mixture_statistics(p.x.requires_grad_(), p.tau, p.mean, p.var, EPS, 1.0)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        w.sum().backward()


def test_two_batches_of_one_layer_keep_apart() -> None:
    """What the first forward saved is what its backward reads, whatever the second one computed."""
    first, second = random_problem(7, (2, 3, 3, 3), 2), random_problem(8, (2, 3, 3, 3), 2)
    policy = (EPS, 0.7, True)
    xs = [p.x.clone().requires_grad_() for p in (first, second)]
    ys = [operator_step(p._replace(x=x), policy, True) for p, x in zip((first, second), xs, strict=True)]
    (ys[0] * ys[1]).sum().backward()
    expected = [p.x.clone().requires_grad_() for p in (first, second)]
    ys = [naive_step(p._replace(x=x), policy, True) for p, x in zip((first, second), expected, strict=True)]
    (ys[0] * ys[1]).sum().backward()
    for ours, theirs in zip(xs, expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **tolerance("float64 gradient"))


def test_nothing_of_m_times_the_batch_is_saved() -> None:
    """For the way back: x, the posterior and tables; never (B, M, D, H, W)."""
    p: Problem = random_problem(9, (8, 16, 8, 8), 4)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        operator_step(p._replace(x=p.x.requires_grad_()), (EPS, 0.25, True), True)
    posterior, table = 8 * 4 * 64, 4 * 16
    assert sum(saved) <= p.x.numel() + posterior + 8 * table
