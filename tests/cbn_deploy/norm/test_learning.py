"""What a batch moves, as one operator: torch's own checks of it, and the layers over it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cbn_deploy.kernels import cuda
from cbn_deploy.norm import CompoundBatchNorm2d, DualPathBatchNorm2d, NormConfig, class_groups, split_path
from cbn_deploy.norm.functional import Moments
from cbn_deploy.norm.learning import NormalizerAverages, learn
from cbn_deploy.norm.statistics import MixtureStatistics
from tests.reference.tolerances import tolerance

LABELS = torch.tensor([0, 1, 3, 3])


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator is used, as on a GPU without Triton."""
    monkeypatch.setattr(cuda, "takes_tables", lambda *_: True)
    monkeypatch.setattr(cuda, "training_tables", lambda: None)


def inputs() -> tuple[Moments, MixtureStatistics, NormalizerAverages]:
    torch.manual_seed(0)
    mean, var, batch_mean, batch_var = (torch.rand(3, 4) for _ in range(4))
    moments = Moments(torch.tensor([40.0, 0.0, 1.5]), batch_mean, batch_var)
    return moments, MixtureStatistics(torch.full((3,), 1 / 3), mean, var), NormalizerAverages(var.clone(), mean.clone())


def layer(dual: bool) -> nn.Module:
    torch.manual_seed(1)
    config = NormConfig(components=2)
    return DualPathBatchNorm2d(5, class_groups(4, 2), config) if dual else CompoundBatchNorm2d(5, config)


def trained(module: nn.Module, compiled: nn.Module, dual: bool) -> list[Tensor]:
    for step in range(3):
        x = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(step))
        y = compiled(x)
        if dual:
            with split_path(module, LABELS):
                y = y + compiled(x.flip(0))
        y.square().sum().backward()
    return [y.detach(), module.weight.grad, *module.state_dict().values()]


@pytest.mark.parametrize("with_own", [False, True])
@pytest.mark.parametrize("update_tau", [False, True])
def test_opcheck(with_own: bool, update_tau: bool) -> None:
    batch, running, own = inputs()
    averages = own if with_own else (None, None)
    torch.library.opcheck(torch.ops.cbn.batch_em, (*batch, *running, *averages, torch.tensor(3), 0.1, update_tau))


@pytest.mark.parametrize("with_own", [False, True])
@pytest.mark.parametrize("update_tau", [False, True])
def test_the_operator_is_the_reading(with_own: bool, update_tau: bool, request: pytest.FixtureRequest) -> None:
    batch, running, own = inputs()
    given = ("batch_em", running, own if with_own else None, torch.tensor(3), batch, 0.1, update_tau)
    plain = learn(*given)
    request.getfixturevalue("as_on_cuda")
    operator = learn(*given)
    torch.testing.assert_close(operator, plain, rtol=0, atol=0)
    assert operator.batches == 4


def test_other_readings_and_types_stay_in_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, running, own = inputs()
    monkeypatch.setattr(cuda, "training_tables", lambda: pytest.fail("not asked for"))
    for reading in ("batch_em", "algorithm2", "update_then_read"):
        assert learn(reading, running, own, torch.tensor(0), batch, 0.1, True).batches == 1


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("dual", [False, True], ids=["compound", "dual"])
def test_layers_over_the_operator_train_alike_compiled_and_under_autocast(
    dual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = layer(dual)
    one, other, third = (copy.deepcopy(module) for _ in range(3))
    eager = trained(one, one, dual)
    with torch.autocast("cpu", torch.bfloat16):
        cast = trained(third, third, dual)
    compiled = trained(other, torch.compile(other, backend="aot_eager", fullgraph=True), dual)
    monkeypatch.undo()
    plain = trained(module, module, dual)
    for found in (eager, cast, compiled):
        for actual, expected in zip(found, plain, strict=True):
            torch.testing.assert_close(actual, expected, **tolerance("float32 training"))
