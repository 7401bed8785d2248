"""Recorded steps are the steps that would have been taken: the order of things on the CPU, the recordings on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbn_deploy.data import TrainingBatch
from cbn_deploy.errors import RuntimeUnavailableError
from cbn_deploy.models import create_model
from cbn_deploy.norm import buffers_in_place
from cbn_deploy.training import RECIPES, apply_settings, step_graphs
from cbn_deploy.training.averages import StepSums
from cbn_deploy.training.classification import classification_loss
from cbn_deploy.training.descent import Descent
from cbn_deploy.training.execution import Execution, check_recordable, recording_obstacles
from cbn_deploy.training.ranks import Ranks
from cbn_deploy.training.step_graphs import WARM_UP_STEPS, StepGraphs
from tests.reference.tolerances import tolerance

COUNTS = (40, 10, 3, 2)
CPU = torch.device("cpu")


class Rebinding(nn.Module):
    """As the mixture layers do: every pass binds a buffer to a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("constant", torch.ones(1))

    def forward(self) -> None:
        self.passes = self.passes + 1
        self.count = self.count + 1


def test_buffers_stay_where_they_are_and_keep_what_the_block_gave_them() -> None:
    model = nn.Sequential(Rebinding())
    before = dict(model.named_buffers())
    with buffers_in_place(model):
        model[0]()
        model[0]()
        assert model[0].passes is not before["0.passes"]
    assert all(buffer is before[name] for name, buffer in model.named_buffers())
    assert [buffer.sum().item() for buffer in before.values()] == [4, 2, 1]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes as they were recorded, by a stand-in that computes a step where a GPU would replay it."""
    sizes: list[int] = []

    class Recording:
        def __init__(self, model, step, batch, pool, stream) -> None:
            del model, pool, stream
            self.step, self.size = step, len(batch.labels)
            sizes.append(self.size)

        def replay(self, batch: TrainingBatch) -> StepSums:
            assert len(batch.labels) == self.size
            return self.step(batch)

    monkeypatch.setattr(step_graphs, "_Recording", Recording)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", object)
    return sizes


def batch_of(size: int) -> TrainingBatch:
    return TrainingBatch(torch.zeros(size, 3, 4, 4), None, torch.zeros(size, dtype=torch.long))


def test_every_step_is_taken_once_and_each_kind_is_recorded_once(played: list[int]) -> None:
    model, taken = Rebinding(), []
    passes = model.passes

    def step(batch: TrainingBatch) -> StepSums:
        model()
        taken.append(len(batch.labels))
        return StepSums((), torch.zeros(2))

    graphs = StepGraphs(model)
    sizes = [4, 4, 4, 4, 3, 4, 4, 4, 4, 3, 4, 4, 4, 4, 3]
    for size in sizes:
        graphs.run(batch_of(size), step, "first")
        assert model.passes is passes or len(played) > 0  # a recording writes back itself
    assert taken == sizes
    assert played == [4, 3]
    graphs.run(batch_of(4), step, "second")
    assert played == [4, 3]  # another kind warms up anew
    assert sizes.index(3) > WARM_UP_STEPS


def test_where_steps_cannot_be_recorded() -> None:
    gpu = Execution(device=torch.device("cuda"), cuda_graphs=True)
    recipe = RECIPES["image-folder"]
    in_portions = apply_settings(recipe, ["accumulate=2"])
    check_recordable(gpu, recipe, Ranks())
    check_recordable(Execution(device=CPU), in_portions, Ranks(world_size=2))
    with pytest.raises(RuntimeUnavailableError, match="needs a CUDA device"):
        check_recordable(Execution(device=CPU, cuda_graphs=True), recipe, Ranks())
    with pytest.raises(RuntimeUnavailableError, match="does not go with accumulate"):
        check_recordable(gpu, in_portions, Ranks())
    with pytest.raises(RuntimeUnavailableError, match="does not go with several processes"):
        check_recordable(gpu, recipe, Ranks(world_size=2))
    with pytest.raises(RuntimeUnavailableError, match="does not go with --compile"):
        check_recordable(Execution(device=torch.device("cuda"), cuda_graphs=True, compile=True), recipe, Ranks())
    with pytest.raises(RuntimeUnavailableError, match=r"does not go with norm\.initialization=first_batch"):
        check_recordable(gpu, apply_settings(recipe, ["norm.initialization=first_batch"]), Ranks())
    assert recording_obstacles(recipe, Ranks(), compiled=False) == []
    assert recording_obstacles(in_portions, Ranks(world_size=2), compiled=True) == [
        "accumulate",
        "several processes",
        "--compile",
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs are recorded on a GPU only")
@pytest.mark.parametrize("model", ["resnet8", "resnet8-bn"])
def test_recorded_steps_train_as_unrecorded_ones(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Both paths, batches of two sizes, a learning rate that changes: same weights, statistics and sums."""
    # Rounding alone, which the network amplifies from step to step, is otherwise not the same in two runs.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    results = []
    for recorded in (False, True):
        settings = [f"model={model}", "loss.paths=compound+split"]
        recipe = apply_settings(RECIPES["image-folder"], settings if model == "resnet8" else settings[:1])
        torch.manual_seed(0)
        execution = Execution(device=torch.device("cuda"), cuda_graphs=recorded)
        network = create_model(recipe.architecture(len(COUNTS)), COUNTS).to("cuda").train()
        descent = Descent(network, recipe, execution, Ranks())
        descent.prepare()
        classify = classification_loss(recipe.loss, COUNTS, device=torch.device("cuda"))
        sums = []
        for number, size in enumerate([8, 8, 8, 5] * 4):
            generator = torch.Generator().manual_seed(number)
            strong, weak = (torch.randn(size, 3, 16, 16, generator=generator).cuda() for _ in range(2))
            labels = torch.randint(len(COUNTS), (size,), generator=generator).cuda()
            batch = TrainingBatch(strong, weak if recipe.two_views else None, labels)
            sums.append(descent.take(batch, recipe, classify, 0.05 / (1 + number)).values.clone())
        results.append({"sums": torch.stack(sums), **network.state_dict()})
    for name, value in results[0].items():
        torch.testing.assert_close(
            results[1][name], value, **tolerance("float32 training"), msg=lambda t, n=name: f"{n}: {t}"
        )
