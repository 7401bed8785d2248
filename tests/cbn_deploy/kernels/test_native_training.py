"""A training step through the native library: float32 against float64, instruction sets, threads, refusals."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cbn_deploy.kernels import native_training, training_passes
from cbn_deploy.native_interface import Training
from tests.cbn_deploy.kernels.native_cases import library
from tests.cbn_deploy.kernels.training_cases import (
    EPS,
    Problem,
    gradients,
    operator_step,
    random_problem,
    require_training_kernels,
)
from tests.reference.tolerances import tolerance

OPS = torch.ops.cbn


@pytest.fixture(autouse=True)
def _native() -> None:
    require_training_kernels()


def single(problem: Problem) -> Problem:
    return Problem(*(tensor.float() for tensor in problem))


def close(ours: Tensor, expected: Tensor) -> None:
    # The gradient of one pixel is a difference of what it does itself and what its share of the moments does.
    row = tolerance("float32 training")
    torch.testing.assert_close(
        ours.double(), expected, rtol=row["rtol"], atol=row["atol"] * max(1.0, expected.abs().max().item())
    )


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 5),
    channels=st.integers(1, 70),
    components=st.integers(1, 8),
    spatial=st.sampled_from([(), (1, 1), (4, 4), (7, 7), (5, 3), (16, 16), (33,), (2, 3, 5), (37, 31)]),
    density_scale=st.sampled_from([1.0, 0.2]),
    posterior_gradient=st.booleans(),
    batch_statistics=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_float32_agrees_with_float64(
    batch, channels, components, spatial, density_scale, posterior_gradient, batch_statistics, seed
) -> None:
    problem = random_problem(seed, (batch, channels, *spatial), components)
    policy = (1e-2, density_scale / channels**0.5, posterior_gradient)
    single_problem = single(problem)
    ours = gradients(operator_step, single_problem, policy, batch_statistics)
    expected = gradients(operator_step, Problem(*(t.double() for t in single_problem)), policy, batch_statistics)
    for a, b in zip(ours, expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("components", [1, 4, 8])
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("shape", [(3, 16, 8, 8), (3, 20, 7, 5)])
def test_every_instruction_set(shape, instruction_set, components, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBN_INSTRUCTION_SET", instruction_set)
    if library().instruction_set is None:
        pytest.skip(f"{instruction_set} cannot run here")
    problem = single(random_problem(1, shape, components))
    policy = (EPS, 0.25, True)
    expected = gradients(operator_step, Problem(*(t.double() for t in problem)), policy, True)
    for a, b in zip(gradients(operator_step, problem, policy, True), expected, strict=True):
        close(a, b)


@pytest.mark.parametrize("shape", [(16, 8, 16, 16), (64, 5, 7, 7)])
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...]) -> None:
    problem = single(random_problem(2, shape, 4))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(_passes_alone(problem))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_any_lender_of_threads_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here Python's own threads: what the chunks share is safe whoever runs them; a thread sanitizer can see it."""
    problem = single(random_problem(2, (16, 8, 16, 16), 4))
    expected = _passes_alone(problem)
    body_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    lenders: list[int] = []

    def lend(body: Callable[[int], None], data: int, threads: int, flags: int) -> None:
        lenders.append(threads)
        workers = [threading.Thread(target=body, args=(data,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    launcher = ctypes.CFUNCTYPE(None, body_type, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)(lend)
    address = ctypes.cast(launcher, ctypes.c_void_p).value
    monkeypatch.setattr(native_training, "lender", lambda: address)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for a, b in zip(_passes_alone(problem), expected, strict=True):
        assert torch.equal(a, b)
    assert lenders == [3] * 4


def _passes_alone(p: Problem) -> list[Tensor]:
    """Without torch's own sums, whose order may depend on the number of threads."""
    x = p.x.flatten(2)
    centre = p.mean[0]
    w, sums = native_training.expectation(x, centre, -0.1 * p.var, p.mean, p.tau)
    y = torch.empty_like(x)
    native_training.combine(x, centre, w, p.scale, p.bias, y)
    outputs = native_training.output_sums(y, x, centre, w)
    tables = training_passes.GradientTables(p.scale, p.bias, p.mean, p.var, p.tau, p.mean, p.var)
    return [w, *sums, y, *outputs, native_training.input_gradient(y, x, centre, w, tables)]


def test_moments_of_a_large_common_offset_lose_nothing() -> None:
    """Sums about the batch mean: an offset of 1e4 must not swamp a variance of 1."""
    problem = random_problem(3, (8, 3, 6, 6), 2)
    x = (problem.x / 2.0 + 1e4).float()
    tables = (problem.tau, problem.mean + 1e4, problem.var)
    *_, mean, var = OPS.mixture_statistics(x, *(t.float() for t in tables), EPS, 1.0)
    *_, expected_mean, expected_var = OPS.mixture_statistics(
        x.double(), *(t.float().double() for t in tables), EPS, 1.0
    )
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), expected_var, **tolerance("float32 offset"))


def test_what_it_cannot_do_is_done_portably(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = single(random_problem(4, (3, 6, 5, 5), 9))
    assert not native_training.suits(problem.x, 9)
    assert not native_training.suits(problem.x.double(), 4)
    for result in gradients(operator_step, problem, (EPS, 0.4, True), True):
        assert torch.isfinite(result).all()
    monkeypatch.setenv("CBN_DISABLE_NATIVE", "1")
    assert not native_training.suits(problem.x, 4)


def test_nan_and_infinity_are_seen() -> None:
    """Neither is lost in a posterior: the moments of the components say so, and the statistics ignore such a batch."""
    for value in (float("nan"), float("inf")):
        problem = single(random_problem(5, (2, 3, 4, 4), 4))
        problem.x[1, 2, 0, 3] = value
        w, *_, mass, _, _ = OPS.mixture_statistics(problem.x, problem.tau, problem.mean, problem.var, EPS, 1.0)
        assert torch.isnan(w[1, :, 0, 3]).all()
        assert torch.isnan(mass).all()


def test_an_empty_batch() -> None:
    problem = single(random_problem(6, (2, 3, 4, 4), 4))
    tables = native_training.expectation(torch.zeros(0, 3, 16), problem.mean[0], problem.mean, problem.var, problem.tau)
    assert tables[0].shape == (0, 4, 16)
    assert not tables[1].mass.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 4}, "step must be"),
        ({"components": 9}, "1 to 8 components"),
        ({"channels": 0}, "at least one channel"),
        ({"images": -1}, "must not be negative"),
        ({"x": None}, "x or the posterior"),
        ({"sums": None}, "place for the result"),
        ({"constant": None}, "constants are missing"),
        ({"step": 1}, "place for the result"),
        ({"step": 2}, "gradient is missing"),
    ],
)
def test_wrong_arguments_are_sentences(change: dict[str, int | None], message: str) -> None:
    functions = library().functions
    space = torch.zeros(64)
    good = dict.fromkeys(("table", "constant", "x", "posterior", "sums"), space.data_ptr())
    sizes = {"step": 0, "components": 1, "channels": 1, "images": 1, "pixels": 1}
    arguments = Training(**{**sizes, **good, **change})
    assert message in functions.cbn_training_run(ctypes.byref(arguments), None, None, 1).decode()
    assert b"instruction set" in functions.cbn_training_run(ctypes.byref(Training(**sizes, **good)), b"mmx", None, 1)
