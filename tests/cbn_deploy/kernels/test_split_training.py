"""The split path's operators: against the oracle and autograd in float64, natively in float32, and opcheck."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor

from cbn_deploy.native_interface import Planes
from cbn_deploy.norm.functional import group_moments
from tests.cbn_deploy.kernels.native_cases import library
from tests.cbn_deploy.kernels.training_cases import (
    EPS,
    Policy,
    Problem,
    gradients,
    random_problem,
    require_training_kernels,
)
from tests.reference import mixture_float64 as oracle
from tests.reference.tolerances import tolerance

OPS = torch.ops.cbn


def groups_of(batch: int, components: int) -> Tensor:
    """Some group is empty wherever there are three or more."""
    return torch.arange(batch) % max(1, components - 1)


def operator_step(p: Problem, policy: Policy, batch_statistics: bool) -> Tensor:
    groups = groups_of(len(p.x), len(p.tau))
    mass, mean, var = group_moments(p.x, groups, len(p.tau))
    used = (mass > 0) & batch_statistics
    mean, var = torch.where(used[:, None], mean, p.mean), torch.where(used[:, None], var, p.var)
    y: Tensor = OPS.split_normalize(
        p.x, groups, mean, var, torch.where(used, 1.0 / mass, 0.0), p.scale, p.bias, policy[0]
    )
    return y


def naive_step(p: Problem, policy: Policy, batch_statistics: bool) -> Tensor:
    """Image by image, the moments in autograd's sight."""
    groups = groups_of(len(p.x), len(p.tau))
    pixels = [0, *range(2, p.x.ndim)]
    y = []
    for image, group in zip(p.x, groups.tolist(), strict=True):
        members = p.x[groups == group]
        mean = members.mean(pixels) if batch_statistics else p.mean[group]
        var = members.var(pixels, correction=0) if batch_statistics else p.var[group]
        mean, var, scale, bias = (
            t.reshape(-1, *(1,) * (p.x.ndim - 2)) for t in (mean, var, p.scale[group], p.bias[group])
        )
        y.append(scale * (image - mean) / (var + policy[0]).sqrt() + bias)
    return torch.stack(y)


@pytest.mark.parametrize("components", [1, 2, 4, 7])
@pytest.mark.parametrize("shape", [(6, 5, 3, 5), (7, 4), (5, 3, 1, 1), (4, 2, 2, 3, 2)])
def test_output_and_gradients_are_those_of_the_formula(shape: tuple[int, ...], components: int) -> None:
    problem = random_problem(1, shape, components)
    for eps in (1e-5, 0.3):
        for batch_statistics in (True, False):
            steps = (operator_step, naive_step)
            ours, expected = (gradients(step, problem, (eps, 1.0, True), batch_statistics) for step in steps)
            for a, b in zip(ours, expected, strict=True):
                torch.testing.assert_close(a, b, **tolerance("float64 gradient"))


def test_it_agrees_with_the_oracle() -> None:
    p = random_problem(5, (6, 4, 3, 3), 3)
    groups = torch.tensor([0, 2, 2, 0, 2, 0])
    y = OPS.split_normalize(p.x, groups, p.mean, p.var, torch.zeros_like(p.tau), p.scale, p.bias, EPS)
    tables = [t.numpy() for t in (p.mean, p.var, p.scale, p.bias)]
    for image, g in enumerate(groups.tolist()):
        member = oracle.pixels(p.x[image : image + 1].numpy())
        one = oracle.compound(member, np.ones((9, 1)), *(t[[g]] for t in tables), EPS)
        assert_allclose(y[image].numpy(), oracle.unpixels(one, (1, 4, 3, 3))[0], **tolerance("float64"))


def test_gradcheck() -> None:
    problem = random_problem(3, (4, 3, 3, 1), 3)

    def step(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return operator_step(problem._replace(x=x, scale=scale, bias=bias), (EPS, 1.0, True), True)

    assert torch.autograd.gradcheck(
        step, [t.clone().requires_grad_() for t in (problem.x, problem.scale, problem.bias)]
    )


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 6),
    channels=st.integers(1, 40),
    components=st.integers(1, 20),
    spatial=st.sampled_from([(), (1, 1), (4, 4), (7, 7), (5, 3), (16, 16), (33,), (40, 40)]),
    batch_statistics=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_native_float32_agrees_with_float64(batch, channels, components, spatial, batch_statistics, seed) -> None:
    require_training_kernels()
    problem = Problem(*(t.float() for t in random_problem(seed, (batch, channels, *spatial), components)))
    ours = gradients(operator_step, problem, (1e-2, 1.0, True), batch_statistics)
    expected = gradients(operator_step, Problem(*(t.double() for t in problem)), (1e-2, 1.0, True), batch_statistics)
    row = tolerance("float32 training")
    for a, b in zip(ours, expected, strict=True):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a.double(), b, rtol=row["rtol"], atol=row["atol"] * scale)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_and_number_of_threads(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require_training_kernels()
    monkeypatch.setenv("CBN_INSTRUCTION_SET", instruction_set)
    if library().instruction_set is None:
        pytest.skip(f"{instruction_set} cannot run here")
    problem = Problem(*(t.float() for t in random_problem(2, (16, 8, 13, 17), 4)))
    expected = gradients(naive_step, Problem(*(t.double() for t in problem)), (EPS, 1.0, True), True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(gradients(operator_step, problem, (EPS, 1.0, True), True))
    finally:
        torch.set_num_threads(before)
    for one, two, correct in zip(*results, expected, strict=True):
        torch.testing.assert_close(one.double(), correct, **tolerance("float32 training"))
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 3, 4, 4), (5, 3)])
def test_opcheck(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    p = Problem(*(t.float() for t in random_problem(0, shape, 2)))
    p = p._replace(x=p.x.to(dtype))
    groups = groups_of(len(p.x), 2)
    torch.library.opcheck(OPS.group_moments, (p.x, groups, 2))
    tables = (p.mean, p.var, torch.full((2,), 0.1))
    torch.library.opcheck(OPS.split_normalize_backward, (torch.ones_like(p.x), p.x, groups, *tables, p.scale, EPS))
    for tensor in (p.x, p.scale, p.bias):
        tensor.requires_grad_()
    torch.library.opcheck(OPS.split_normalize, (p.x, groups, *tables, p.scale, p.bias, EPS))


def test_moments_of_a_large_common_offset_lose_nothing() -> None:
    x = (torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 9, 9))) + 1e4).float()
    groups = torch.arange(len(x))  # of one image each
    for images in (x, x.double()):
        _, mean, var = OPS.group_moments(images, groups, len(x))
        torch.testing.assert_close(mean.double(), x.double().mean((2, 3)), rtol=1e-6, atol=0)
        expected = x.double().var((2, 3), correction=0)
        torch.testing.assert_close(var.double(), expected, **tolerance("float32 offset"))


def test_only_x_and_tables_are_saved() -> None:
    p = random_problem(9, (8, 16, 8, 8), 4)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        operator_step(p._replace(x=p.x.requires_grad_()), (EPS, 1.0, True), True)
    assert sum(saved) <= p.x.numel() + 8 + 4 * 4 * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3}, "step must be"),
        ({"pixels": 0}, "at least one pixel"),
        ({"x": None}, "table or x"),
        ({"sums": None}, "place for the result"),
        ({"step": 2, "result": None}, "place for the result"),
        ({"step": 1, "grad": None}, "gradient is missing"),
    ],
)
def test_wrong_arguments_are_sentences(change: dict[str, int | None], message: str) -> None:
    functions = library().functions
    space = torch.zeros(64)
    addresses = dict.fromkeys(("table", "x", "grad", "result", "sums"), space.data_ptr())
    arguments = Planes(**{"step": 0, "planes": 1, "pixels": 1, **addresses, **change})
    assert message in functions.cbn_planes_run(ctypes.byref(arguments), None, None, 1).decode()
