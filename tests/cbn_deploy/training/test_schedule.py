from __future__ import annotations

import math

import pytest
import torch

from cbn_deploy.training.schedule import cosine_learning_rate


def test_agrees_with_torchs_cosine_annealing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for step in range(40):
        assert cosine_learning_rate(step, 40, 0.05) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        reference.step()


def test_warm_up_rises_evenly_to_the_peak_then_cosine():
    rates = [cosine_learning_rate(step, 20, 1.0, warmup_steps=4) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.5 * (1 + math.cos(math.pi * 8 / 16)))
    assert rates[4:] == sorted(rates[4:], reverse=True)


@pytest.mark.parametrize(("step", "total", "warmup"), [(10, 10, 0), (-1, 10, 0), (0, 10, 10), (0, 10, -1)])
def test_steps_outside_the_run_are_refused(step, total, warmup):
    with pytest.raises(ValueError, match="does not fit"):
        cosine_learning_rate(step, total, 0.1, warmup)
