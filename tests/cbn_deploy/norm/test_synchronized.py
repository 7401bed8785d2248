"""Two real processes, each with a part of the batch, are one process with the joined batch: float64, every digit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig, SynchronizedBatchNorm2d, synchronize
from tests.cbn_deploy.norm.rank_cases import CASES, save_steps, step
from tests.ranks import run_on_ranks
from tests.reference.tolerances import tolerance


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_on_ranks(save_steps, 2, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one(name: str, on_two_ranks: list[dict[str, Any]]) -> None:
    first, second = (outcome[name] for outcome in on_two_ranks)
    alone = step(CASES[name], 0, local=True, whole=True)
    assert first.keys() == second.keys() == alone.keys()
    for key, expected in alone.items():
        kind = key.split()[0]
        if kind == "logits":  # of images: the ranks' one after another
            ours = torch.cat([first[key], second[key]])
        elif kind == "gradient":  # of a sum over images: the ranks' added up, as DistributedDataParallel does
            ours = first[key] + second[key]
        else:
            assert torch.equal(first[key], second[key]), key
            ours = first[key]
        torch.testing.assert_close(
            ours, expected, **tolerance("float64 gradient"), msg=lambda text, key=key: key + text
        )


def test_the_ranks_do_need_each_other(on_two_ranks: list[dict[str, Any]]) -> None:
    """The comparison above could not hold by chance: half the batch alone gives other logits."""
    name = "halves, mixed groups"
    half = step(CASES[name], 0, local=True)["logits 0 0"]
    assert (on_two_ranks[0][name]["logits 0 0"] - half).abs().max() > 0.01


def test_a_network_keeps_its_state_dict_and_its_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), CompoundBatchNorm2d(4, NormConfig(components=2)))
    parameters, state = list(model.parameters()), {k: v.clone() for k, v in model.state_dict().items()}
    assert synchronize(model) is model
    assert isinstance(model[1], SynchronizedBatchNorm2d)
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(model.state_dict()[name], value)


def test_evaluation_needs_no_other_ranks() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), CompoundBatchNorm2d(3, NormConfig(components=2))).eval()
    x = torch.randn(2, 3, 4, 4)
    before = model(x)
    assert torch.equal(synchronize(model).eval()(x), before)


def test_a_lone_batch_norm_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match="wrap the batch norm"):
        synchronize(nn.BatchNorm2d(3))


def test_without_a_process_group_nothing_is_trained() -> None:
    layer = synchronize(nn.Sequential(CompoundBatchNorm2d(3, NormConfig(components=2))))
    with pytest.raises(ValueError, match="process group"):
        layer(torch.randn(2, 3, 4, 4))
