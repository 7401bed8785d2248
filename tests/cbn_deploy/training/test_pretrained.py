from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from cbn_deploy.errors import CheckpointError
from cbn_deploy.models import ArchitectureConfig, create_model
from cbn_deploy.norm import NormConfig, split_path
from cbn_deploy.training.pretrained import load_pretrained
from tests.reference.tolerances import tolerance

CLASSES = 6


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source(images):
    """A batch-norm ResNet-20 for 10 classes whose statistics and affine parameters are not the initial ones."""
    torch.manual_seed(1)
    network = create_model(ArchitectureConfig(name="resnet20-bn", num_classes=10))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bn" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    for _ in range(3):
        network(images)
    return network.eval()


@pytest.fixture
def weights(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    return path


def made(norm=None, name="resnet20"):
    architecture = ArchitectureConfig(name=name, num_classes=CLASSES, norm=norm)
    torch.manual_seed(2)
    return architecture, create_model(architecture)


def features(model, images):
    seen = []
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(images)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(
    "norm",
    [NormConfig(), NormConfig(components=1, split_groups=3), NormConfig(components=2, split_affine="separate")],
    ids=["compound", "batch norm beside split", "separate tables"],
)
def test_the_features_are_those_of_the_file_and_the_classifier_is_new(norm, source, weights, images):
    architecture, model = made(norm)
    fresh = {name: p.clone() for name, p in model.named_parameters() if name.startswith(("linear", "fc"))}
    assert fresh
    load_pretrained(model, architecture, weights)
    torch.testing.assert_close(features(model, images), features(source, images), **tolerance("converted network"))
    for name, parameter in model.named_parameters():
        if name in fresh:
            assert torch.equal(parameter, fresh[name])


def test_components_are_distinct(weights):
    architecture, model = made(NormConfig())
    load_pretrained(model, architecture, weights)
    mean = model.bn1.running_mean
    assert mean.shape == (4, 16)
    assert len(torch.unique(mean[:, 0])) == 4


def test_a_split_path_of_its_own_starts_from_the_file_too(source, weights, images):
    architecture, model = made(NormConfig(components=1, split_groups=3))
    load_pretrained(model, architecture, weights)
    model.eval()
    with torch.no_grad(), split_path(model, torch.tensor([0, 2, 4, 5])):
        split = model(images)
    with torch.no_grad():
        compound = model(images)
    torch.testing.assert_close(split, compound, **tolerance("two paths of a network"))


def test_a_batch_norm_model_takes_the_file_as_it_is(source, weights, images):
    architecture, model = made(name="resnet20-bn")
    load_pretrained(model, architecture, weights)
    assert torch.equal(features(model, images), features(source, images))


def test_wrapped_and_prefixed_files_and_files_without_counters_are_read(source, tmp_path, images):
    state = {f"module.{name}": value for name, value in source.state_dict().items() if "num_batches" not in name}
    path = tmp_path / "wrapped.pth"
    torch.save({"state_dict": state, "epoch": 90}, path, _use_new_zipfile_serialization=False)
    architecture, model = made(NormConfig(initialization="first_batch"))
    load_pretrained(model, architecture, path)
    expected = features(source, images)
    torch.testing.assert_close(features(model, images), expected, **tolerance("converted network"))
    before = model.bn1.running_mean.clone()
    model.train()(images)
    # Carried statistics move by the momentum; "first_batch" would have replaced them.
    batch = (model.bn1.running_mean - before).abs().max()
    assert batch < 0.5 * before.abs().max()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"not a checkpoint", "no torch file of plain tensors"),
        ([1, 2], "holds no tensors by name"),
        ({"state_dict": {"a": 1}}, "holds no tensors by name"),
        ({"conv1.weight": torch.zeros(1)}, "does not hold the tensors of resnet20"),
    ],
)
def test_files_that_do_not_serve_get_one_sentence(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    architecture, model = made(NormConfig())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(model, architecture, path)
    assert "\n" not in str(caught.value)


def test_an_unknown_user_or_an_impossible_name_is_one_sentence():
    architecture, model = made(NormConfig())
    with pytest.raises(CheckpointError, match="a user without a home folder here; give the whole path"):
        load_pretrained(model, architecture, Path("~nosuchuser/weights.pth"))
    with pytest.raises(CheckpointError, match="does not exist"):
        load_pretrained(model, architecture, Path("x" * 300))


def test_another_network_is_refused(tmp_path, source):
    path = tmp_path / "weights.pth"
    torch.save(create_model(ArchitectureConfig(name="resnet14-bn", num_classes=10)).state_dict(), path)
    architecture, model = made(NormConfig())
    with pytest.raises(CheckpointError, match="give the file of that network"):
        load_pretrained(model, architecture, path)
    nan = {name: value.clone() for name, value in source.state_dict().items()}
    nan["bn1.weight"][0] = float("nan")
    torch.save(nan, path)
    with pytest.raises(CheckpointError, match=r"not finite in bn1\.weight"):
        load_pretrained(model, architecture, path)


class Surprise:
    def __reduce__(self):
        return print, ("code from a stranger",)


def test_code_in_the_file_is_not_run(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": Surprise()}, path)
    architecture, model = made(NormConfig())
    with pytest.raises(CheckpointError, match="with code in it"):
        load_pretrained(model, architecture, path)
    path.write_bytes(pickle.dumps(Surprise()))
    with pytest.raises(CheckpointError):
        load_pretrained(model, architecture, path)
    assert "stranger" not in capsys.readouterr().out
