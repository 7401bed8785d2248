from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from cbn_deploy.checkpoint import load_checkpoint
from cbn_deploy.data import TrainingBatch
from cbn_deploy.data.sharding import Sharding
from cbn_deploy.errors import RecipeError, TrainingError
from cbn_deploy.models import create_model
from cbn_deploy.norm import synchronize
from cbn_deploy.training import Progress, apply_settings, get_recipe, train
from cbn_deploy.training.class_tables import class_weights
from cbn_deploy.training.decoupled import StageSwitch, last_layer, stages, training_prior
from cbn_deploy.training.descent import Descent
from cbn_deploy.training.execution import Execution
from cbn_deploy.training.losses import cross_entropy
from cbn_deploy.training.metrics_log import read_metrics
from cbn_deploy.training.optimizer import make_optimizer
from cbn_deploy.training.ranks import Ranks
from cbn_deploy.training.state import load_state
from tests.ranks import run_on_ranks
from tests.reference.tolerances import tolerance

COUNTS = (40, 10, 3)
# One epoch of representation, two of the classifier, of four steps each.
SMALL = ["model=resnet8", "norm.components=2"]
TWO_STAGES = [*SMALL, "decoupled.share=0.67", "decoupled.sampling=class_balanced", "decoupled.class_weights=inverse"]
CLASSIFIER = {"fc.weight", "fc.bias"}
KINDS = ("keep", "reset", "rescale")


class Snapshots(Progress):
    """A copy of last.pt after every epoch."""

    def __init__(self, folder):
        self.folder = folder
        self.states = {}

    def epoch_done(self, metrics):
        self.states[metrics.epoch] = load_state(self.folder / "last.pt")


class StopAfter(Progress):
    def __init__(self, epoch, step):
        self.at = (epoch, step)

    def step_done(self, step):
        if (step.epoch, step.step) == self.at:
            raise KeyboardInterrupt


def recipe_of(*settings):
    return apply_settings(get_recipe("digits-lt"), settings)


def make_run(recipe):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(recipe.architecture(len(COUNTS)), COUNTS)
    return model, make_optimizer(model, recipe.optimizer)


def train_some_steps(model, optimizer, stage, epoch, steps=3):
    generator = torch.Generator().manual_seed(epoch)
    classify = stage.classification_loss(COUNTS, epoch, torch.device("cpu"))
    for _ in range(steps):
        images = torch.randn(6, 3, 16, 16, generator=generator)
        labels = torch.randint(len(COUNTS), (6,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        classify(model(images), labels).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def decoupled_run(photos, tiny_recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "decoupled"
    snapshots = Snapshots(out)
    train(apply_settings(tiny_recipe, TWO_STAGES), photos, out, progress=snapshots)
    return out, list(snapshots.states.values())


def test_divergence_of_the_second_stage_names_what_that_stage_has(tiny_recipe, photos, tmp_path):
    settings = ["model=resnet8", "epochs=6", "decoupled.share=0.5", "decoupled.lr=1e30"]
    with pytest.raises(TrainingError) as caught:
        train(apply_settings(tiny_recipe, settings), photos, tmp_path)
    message = str(caught.value)
    assert "epoch 4" in message
    assert "(--set decoupled.lr=2e+29) in a new --out" in message


def test_the_feature_extractor_is_bit_identical_through_the_second_stage(decoupled_run):
    _, states = decoupled_run
    representation, *second_stage = states
    for state in second_stage:
        changed = {name for name in state.model if not torch.equal(state.model[name], representation.model[name])}
        assert changed == CLASSIFIER
    assert not torch.equal(second_stage[0].model["fc.weight"], second_stage[1].model["fc.weight"])


def test_the_first_stage_is_that_of_a_shorter_run(decoupled_run, photos, tiny_recipe, tmp_path):
    """Up to the boundary nothing of the second stage is felt: its cosine ends where the first stage ends."""
    train(apply_settings(tiny_recipe, [*SMALL, "epochs=1"]), photos, tmp_path)
    alone, states = load_state(tmp_path / "last.pt"), decoupled_run[1]
    for name, tensor in alone.model.items():
        assert torch.equal(tensor, states[0].model[name]), name


def test_the_second_stage_has_one_loss_and_a_schedule_of_its_own(decoupled_run):
    first, second, third = read_metrics(decoupled_run[0] / "metrics.jsonl")
    assert first.split_loss is not None
    assert first.consistency_loss is not None
    for epoch in (second, third):
        assert (epoch.split_loss, epoch.consistency_loss) == (None, None)
        assert epoch.loss == epoch.classification_loss
    assert second.learning_rate > first.learning_rate
    assert third.learning_rate < second.learning_rate


def test_the_model_says_which_prior_its_second_stage_leaves(decoupled_run):
    prior = load_checkpoint(decoupled_run[0] / "model.pt").description.training_prior
    inverse = np.array([1 / 14, 1 / 9, 1 / 5])  # balanced softmax, weighted; the classes are sorted by name
    assert prior == pytest.approx((inverse / inverse.sum()).tolist())


@pytest.mark.parametrize(
    ("epoch", "step", "completed"), [(2, 1, 1), (3, 2, 2)], ids=["at the boundary", "within the second stage"]
)
def test_resuming_changes_nothing(decoupled_run, photos, tiny_recipe, tmp_path, epoch, step, completed):
    recipe = apply_settings(tiny_recipe, TWO_STAGES)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, photos, tmp_path, progress=StopAfter(epoch, step))
    assert load_state(tmp_path / "last.pt").epoch == completed
    torch.manual_seed(99)
    train(recipe, photos, tmp_path, resume=True)
    resumed, whole = (load_checkpoint(path / "model.pt").state_dict for path in (tmp_path, decoupled_run[0]))
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def classifier_steps(kind, ranks):
    """Network after steps of both stages, this rank's share of every batch and the others'."""
    recipe = recipe_of("model=resnet8", "epochs=4", "decoupled.share=0.5", f"decoupled.classifier={kind}")
    torch.manual_seed(0)
    model = create_model(recipe.architecture(len(COUNTS)), COUNTS).double()
    if ranks.world_size > 1:
        synchronize(model)
    descent = Descent(model, recipe, Execution(device=torch.device("cpu")), ranks)
    switch = StageSwitch(recipe, model, descent.optimizer)
    sharding = Sharding(rank=ranks.rank, world_size=ranks.world_size)
    for epoch in (1, 2, 3):
        stage = switch.enter(epoch)
        descent.prepare()
        classify = stage.classification_loss(COUNTS, epoch, torch.device("cpu"))
        for number, size in enumerate((6, 5, 1)):
            generator = torch.Generator().manual_seed(10 * epoch + number)
            strong, weak = (torch.randn(size, 3, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2))
            labels = torch.randint(len(COUNTS), (size,), generator=generator)
            (share,) = sharding.shares(size)
            mine = slice(share.start, share.stop)
            batch = TrainingBatch(strong[mine], weak[mine], labels[mine], len(share) / size)
            descent.take(batch, stage.recipe, classify, 0.05)
    return model.state_dict()


def classifier_steps_on_rank(rank, world_size, folder):
    states = {kind: classifier_steps(kind, Ranks.current()) for kind in KINDS}
    torch.save(states, folder / f"{rank}.pt")


def test_several_ranks_train_one_classifier(tmp_path):
    run_on_ranks(classifier_steps_on_rank, 2, tmp_path)
    for kind in KINDS:
        alone = classifier_steps(kind, Ranks())
        for rank in range(2):
            together = torch.load(tmp_path / f"{rank}.pt")[kind]
            for name, tensor in alone.items():
                torch.testing.assert_close(together[name], tensor, **tolerance("float64 gradient"))


@pytest.mark.parametrize(
    "settings",
    [
        ["loss.classification=focal", "sampling=square_root"],
        ["loss.classification=ldam", "loss.class_weights=effective_number", "loss.class_weights_from=0.5"],
        ["loss.classification=logit_adjustment", "precision=bf16"],
        ["loss.classification=vector_scaling", "loss.class_weights=inverse"],
        ["loss.classification=ldam", "decoupled.share=0.5", "decoupled.classifier=reset", "model=resnet8-bn"],
    ],
    ids=lambda settings: settings[0].split("=")[1],
)
def test_every_loss_ends_in_a_model_that_knows_its_prior(photos, tiny_recipe, tmp_path, settings):
    recipe = apply_settings(tiny_recipe, ["model=resnet8", "epochs=2", *settings])
    result = train(recipe, photos, tmp_path)
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.description.training_prior == pytest.approx(training_prior(recipe, (14, 9, 5)))
    is_ldam = recipe.loss.classification == "ldam"
    assert checkpoint.architecture.cosine_scale == (30.0 if is_ldam else None)
    assert ("fc.bias" in checkpoint.state_dict) != is_ldam
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert np.isfinite([first.loss, second.loss]).all()


@pytest.mark.parametrize("model", ["resnet8", "resnet8-bn"])
def test_a_reset_classifier_starts_afresh_whatever_came_before(model):
    recipe = recipe_of(f"model={model}", "epochs=4", "decoupled.share=0.5", "decoupled.classifier=reset")
    fresh = []
    for steps in (0, 3):
        network, optimizer = make_run(recipe)
        switch = StageSwitch(recipe, network, optimizer)
        train_some_steps(network, optimizer, switch.enter(0), 0, steps)
        trained = copy.deepcopy(last_layer(network).state_dict())
        before = torch.get_rng_state()
        switch.enter(2)
        assert torch.equal(torch.get_rng_state(), before)
        fresh.append(copy.deepcopy(last_layer(network).state_dict()))
        assert not torch.equal(fresh[-1]["weight"], trained["weight"])
        switch.enter(3)
        assert torch.equal(last_layer(network).weight, fresh[-1]["weight"])  # once is enough
    assert torch.equal(fresh[0]["weight"], fresh[1]["weight"])
    assert torch.equal(fresh[0]["bias"], fresh[1]["bias"])


def test_rescaling_changes_lengths_and_nothing_else():
    recipe = recipe_of("model=resnet8", "epochs=4", "decoupled.share=0.5", "decoupled.classifier=rescale")
    network, optimizer = make_run(recipe)
    switch = StageSwitch(recipe, network, optimizer)
    before = copy.deepcopy(network.state_dict())
    for epoch in (2, 3):
        train_some_steps(network, optimizer, switch.enter(epoch), epoch)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight"}
    old, new = before["fc.weight"], network.state_dict()["fc.weight"]
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(old, new), torch.ones(len(COUNTS)))
    assert ((new.norm(dim=1) / old.norm(dim=1) - 1).abs() > 1e-4).all()


def test_rescaling_descends_the_gradient_of_the_factors():
    """One plain step on w moves the length by -lr times dL/df, f the factor of LWS at a unit of length 1."""
    recipe = recipe_of(
        "model=resnet8", "epochs=4", "decoupled.share=0.5", "decoupled.classifier=rescale", "optimizer.momentum=0",
        "optimizer.weight_decay=0", "lr=0.1", "loss.classification=cross_entropy",
    )  # fmt: skip
    network, optimizer = make_run(recipe)
    stage = StageSwitch(recipe, network, optimizer).enter(2)
    images, labels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2] * 2)
    classifier = last_layer(network)
    features: list[torch.Tensor] = []
    handle = classifier.register_forward_pre_hook(lambda _layer, inputs: features.append(inputs[0].detach()))
    network(images)
    handle.remove()
    lengths = classifier.weight.detach().norm(dim=1).requires_grad_()
    directions = torch.nn.functional.normalize(classifier.weight.detach(), dim=1)
    cross_entropy(features[0] @ (lengths[:, None] * directions).T + classifier.bias.detach(), labels).backward()
    classify = stage.classification_loss(COUNTS, 2, torch.device("cpu"))
    classify(network(images), labels).backward()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(classifier.weight.detach().norm(dim=1), lengths.detach() - 0.1 * lengths.grad)


def test_momentum_of_the_first_stage_is_forgotten():
    recipe = recipe_of("model=resnet8", "epochs=4", "decoupled.share=0.5")
    network, optimizer = make_run(recipe)
    switch = StageSwitch(recipe, network, optimizer)
    train_some_steps(network, optimizer, switch.enter(0), 0)
    assert optimizer.state
    switch.enter(2)
    assert not optimizer.state
    train_some_steps(network, optimizer, switch.enter(2), 2)
    assert {id(p) for p in optimizer.state} == {id(p) for p in last_layer(network).parameters()}


def test_deferred_re_weighting_begins_after_its_share_of_the_epochs():
    recipe = recipe_of(
        "loss.classification=ldam", "loss.class_weights=effective_number", "loss.class_weights_from=0.8", "epochs=200"
    )
    (stage,) = stages(recipe)
    logits, labels = torch.tensor([[3.0, -1.0, 0.5]]), torch.tensor([2])
    weight = class_weights(COUNTS, "effective_number", 0.9999)[2].item()
    losses = [stage.classification_loss(COUNTS, e, torch.device("cpu"))(logits, labels).item() for e in (0, 159, 160)]
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(weight * losses[0])
    (single,) = stages(recipe_of("loss.class_weights=inverse", "loss.class_weights_from=0.9", "epochs=1"))
    weighted = single.classification_loss(COUNTS, 0, torch.device("cpu"))(logits, labels)
    plain = stages(recipe_of("epochs=1"))[0].classification_loss(COUNTS, 0, torch.device("cpu"))(logits, labels)
    assert weighted.item() == pytest.approx(class_weights(COUNTS, "inverse")[2].item() * plain.item())


def test_the_cosine_starts_again_without_a_warm_up():
    recipe = recipe_of("epochs=10", "schedule.warmup_epochs=2", "lr=0.4", "decoupled.share=0.2", "decoupled.lr=0.1")
    first, second = stages(recipe)
    assert (first.first, first.epochs, second.first, second.epochs) == (0, 8, 8, 2)
    assert first.learning_rate(0, 0, 5) == pytest.approx(0.4 / 11)
    assert first.learning_rate(2, 0, 5) == pytest.approx(0.4)
    assert first.learning_rate(7, 4, 5) < 0.01
    assert second.learning_rate(8, 0, 5) == pytest.approx(0.1)
    assert second.learning_rate(9, 0, 5) == pytest.approx(0.05)


def test_a_run_without_decoupling_is_one_stage():
    recipe = recipe_of("sampling=square_root", "loss.class_weights=inverse")
    (stage,) = stages(recipe)
    assert (stage.recipe, stage.first, stage.epochs, stage.classifier_only) == (recipe, 0, 24, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["decoupled.share=1"], "share must be in [0, 1)"),
        (["decoupled.share=0.2", "epochs=1"], "leaves one stage without an epoch"),
        (["decoupled.share=0.99"], "leaves one stage without an epoch"),
        (["decoupled.sampling=class_balanced"], "decoupled.share is 0"),
        (["decoupled.share=0.5", "epochs=4", "schedule.warmup_epochs=2"], "warmup_epochs must be in 0..1"),
        (["decoupled.share=0.5", "decoupled.classification=ldam"], "only where loss.classification is ldam"),
        (["decoupled.share=0.5", "decoupled.classifier=rescale", "loss.classification=ldam"], "keep or reset"),
        (["decoupled.share=0.5", "decoupled.lr=0"], "lr must be above 0 or none"),
        (["decoupled.share=0.5", "decoupled.classifier=fresh"], "one of keep, reset, rescale"),
        (["sampling=balanced"], "sampling must be one of instance_balanced, square_root, class_balanced"),
        (["loss.class_weights_from=0.8"], "loss.class_weights is none"),
        (["loss.class_weights=inverse", "loss.effective_number_beta=0.9"], "no class weights use it"),
        (["loss.class_weights=effective_number", "loss.effective_number_beta=1"], "in [0, 1)"),
        (["loss.focal_gamma=1"], "it is for the loss focal"),
        (["loss.tau=2"], "logit_adjustment and vector_scaling"),
        (["loss.ldam_scale=10"], "it is for the loss ldam"),
        (["loss.classification=ldam", "loss.ldam_max_margin=0"], "ldam_max_margin must be above 0"),
        (["loss.classification=vs"], "vector_scaling"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(RecipeError) as caught:
        recipe_of(*settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
