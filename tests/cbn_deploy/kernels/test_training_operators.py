"""The training operators as torch sees them: opcheck, compilers, export, autocast, memory formats."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

from tests.cbn_deploy.kernels.training_cases import Problem, gradients, operator_step, random_problem
from tests.reference.tolerances import tolerance

OPS = torch.ops.cbn
POLICY = (1e-5, 0.5, True)


def single(seed: int, shape: tuple[int, ...] = (2, 3, 4, 4), components: int = 2) -> Problem:
    return Problem(*(tensor.float() for tensor in random_problem(seed, shape, components)))


def normalize_arguments(p: Problem) -> tuple[object, ...]:
    w, centre, *logits, mass, mean, var = OPS.mixture_statistics(p.x, p.tau, p.mean, p.var, *POLICY[:2])
    return (p.x, w, centre, *logits, mean, var, 1.0 / mass, p.scale, p.bias, POLICY[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (5, 3)])
def test_opcheck(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    p = single(0, shape)
    p = p._replace(x=p.x.to(dtype))
    torch.library.opcheck(OPS.mixture_statistics, (p.x, p.tau, p.mean, p.var, *POLICY[:2]))
    arguments = normalize_arguments(p)
    torch.library.opcheck(OPS.mixture_normalize_backward, (torch.ones_like(p.x), *arguments))
    for tensor in (p.x, p.scale, p.bias):
        tensor.requires_grad_()
    torch.library.opcheck(OPS.mixture_normalize, arguments)


def test_opcheck_of_the_inference_operator_with_gradient() -> None:
    p = single(1)
    for tensor in (p.x, p.scale, p.bias):
        tensor.requires_grad_()
    torch.library.opcheck(OPS.compound_batch_norm, (*p, 1e-5, 0.5))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # inductor's own imports
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_works_under_compile(backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    p = single(2)

    def step(problem: Problem, policy: tuple[float, float, bool], batch_statistics: bool) -> Tensor:
        return operator_step(problem, policy, batch_statistics).relu()

    ours = gradients(torch.compile(step, backend=backend, fullgraph=True), p, POLICY, True)
    for a, b in zip(ours, gradients(step, p, POLICY, True), strict=True):
        torch.testing.assert_close(a, b, **tolerance("float32 training"))


def test_it_can_be_exported() -> None:
    class Step(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return operator_step(Problem(*tensors), POLICY, True)

    p = single(3)
    exported = torch.export.export(Step(), tuple(p))
    assert {str(node.target) for node in exported.graph.nodes} >= {
        "cbn.mixture_statistics.default",
        "cbn.mixture_normalize.default",
    }
    torch.testing.assert_close(exported.module()(*p), operator_step(p, POLICY, True), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_in_place_follower_may_write_into_the_output(dtype: torch.dtype) -> None:
    p = Problem(*(t.to(dtype) for t in single(4)))
    tables = (p.tau, p.mean, p.var, p.scale.requires_grad_(), p.bias, 1e-5, 0.5)
    for y in (operator_step(p, POLICY, True), OPS.compound_batch_norm(p.x, *tables)):
        expected = y.detach().relu()
        y.relu_()
        torch.testing.assert_close(y.detach(), expected, rtol=0, atol=0)
        y.sum().backward()


def test_autocast_computes_in_float32() -> None:
    """x comes in bfloat16 out of an autocast convolution; logits in bfloat16 would be worthless."""
    p = single(5, (4, 8, 6, 6), 4)
    p = p._replace(x=p.x.bfloat16())
    expected = gradients(operator_step, p._replace(x=p.x.float()), POLICY, True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(operator_step, p, POLICY, True)
        portable = gradients(operator_step, p._replace(x=p.x.double()), POLICY, True)
    assert ours[0].dtype == ours[1].dtype == torch.bfloat16
    assert ours[2].dtype == torch.float32
    torch.testing.assert_close(ours[0].float(), expected[0], rtol=2.0**-8, atol=2.0**-8)
    torch.testing.assert_close(portable[0].float(), expected[0], **tolerance("float32 training"))


def test_memory_formats_give_the_same_numbers() -> None:
    p = single(6, (3, 5, 4, 6), 3)
    expected = gradients(operator_step, p, POLICY, True)
    for x in (p.x.contiguous(memory_format=torch.channels_last), p.x.repeat_interleave(2, dim=3)[..., ::2]):
        for a, b in zip(gradients(operator_step, p._replace(x=x), POLICY, True), expected, strict=True):
            torch.testing.assert_close(a, b, **tolerance("float32 training"))
