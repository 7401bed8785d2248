from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch

from cbn_deploy.errors import CheckpointError, DataError, OutputError, RecipeError
from cbn_deploy.training import RECIPES, apply_settings, get_recipe
from cbn_deploy.training.folder import RunFolder, check_same_run
from cbn_deploy.training.metrics_log import EpochMetrics, append_metrics, keep_epochs, read_metrics
from cbn_deploy.training.state import capture_state, load_state, restore_state, save_state

RECIPE = RECIPES["digits-lt"]


def make_run():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def take_step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()


def make_state(model, optimizer, epoch=1):
    return capture_state(
        model,
        optimizer,
        epoch=epoch,
        recipe=RECIPE.to_dict(),
        class_names=("a", "b"),
        class_counts=(9, 2),
        seconds=1.5,
    )


def metrics(epoch):
    return EpochMetrics(
        epoch=epoch,
        loss=1.0,
        classification_loss=0.5,
        split_loss=None,
        consistency_loss=None,
        train_accuracy=0.25,
        learning_rate=0.1,
        images_per_second=10.0,
        seconds=2.0,
    )


def test_a_restored_run_goes_on_exactly_as_the_saved_one(tmp_path):
    model, optimizer = make_run()
    take_step(model, optimizer)
    save_state(tmp_path / "last.pt", make_state(model, optimizer))
    take_step(model, optimizer)

    other_model, other_optimizer = make_run()
    state = load_state(tmp_path / "last.pt")
    restore_state(state, other_model, other_optimizer)
    take_step(other_model, other_optimizer)

    assert (state.epoch, state.seconds, state.recipe) == (1, 1.5, RECIPE.to_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other_model.state_dict()[name]), name


def test_a_truncated_state_is_one_sentence(tmp_path):
    path = tmp_path / "last.pt"
    save_state(path, make_state(*make_run()))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be read as a training state"):
        load_state(path)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    path, marker = tmp_path / "last.pt", tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return Path.touch, (marker,)

    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(CheckpointError):
        load_state(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [{"format_version": 99}, {"format_version": 1, "epoch": 3}, [1, 2]])
def test_a_foreign_file_is_not_a_state(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="not a training state"):
        load_state(tmp_path / "last.pt")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", "1"),
        ("epoch", -1),
        ("recipe", 5),
        ("class_names", None),
        ("class_counts", ("a", "b")),
        ("model", [1]),
        ("optimizer", None),
        ("random_state", 3),
        ("seconds", "long"),
    ],
)
def test_a_state_with_a_wrong_field_is_damaged(tmp_path, field, value):
    path = tmp_path / "last.pt"
    save_state(path, dataclasses.replace(make_state(*make_run()), **{field: value}))
    with pytest.raises(CheckpointError, match=rf"damaged \(its {field} .*; start again in another folder\."):
        load_state(path)


def test_a_state_that_does_not_fit_is_one_sentence():
    model, optimizer = make_run()
    state = make_state(model, optimizer)
    for wrong in (
        {"model": {**state.model, "0.bias": torch.zeros(5)}},
        {"model": {}},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"optimizer": {}},
        {"random_state": torch.zeros(3, dtype=torch.uint8)},
        {"random_state": torch.zeros(3)},
    ):
        with pytest.raises(CheckpointError, match=r"does not fit .*; start again in another folder") as caught:
            restore_state(dataclasses.replace(state, **wrong), model, optimizer)
        assert "\n" not in str(caught.value)


def test_more_epochs_than_the_recipe_has_are_no_finished_run():
    epochs = RECIPE.schedule.epochs
    check_same_run(make_state(*make_run(), epoch=epochs), RECIPE, ("a", "b"), (9, 2))
    with pytest.raises(CheckpointError, match=f"epoch {epochs + 1} of {epochs}"):
        check_same_run(make_state(*make_run(), epoch=epochs + 1), RECIPE, ("a", "b"), (9, 2))


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b'{"epoch": 2, "lo', b"[2]", b'{"epoch": 2}'])
def test_a_damaged_line_costs_no_other(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    for epoch in (1, 2, 3):
        append_metrics(path, metrics(epoch))
    first, _, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join((first, damage, third, b"")))
    assert read_metrics(path) == [metrics(1), metrics(3)]
    assert keep_epochs(path, 3) == [metrics(1), metrics(3)]
    assert path.read_bytes() == b"\n".join((first, third, b""))


def test_a_line_whose_epoch_is_no_number_is_damaged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, metrics("1"))
    append_metrics(path, metrics(2))
    assert keep_epochs(path, 2) == [metrics(2)]


def test_metrics_survive_a_cut_line_and_drop_later_epochs(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    for epoch in (1, 2, 3):
        append_metrics(path, metrics(epoch))
    with path.open("a") as file:
        file.write('{"epoch": 4, "lo')
    assert [m.epoch for m in read_metrics(path)] == [1, 2, 3]
    assert keep_epochs(path, 2) == [metrics(1), metrics(2)]
    append_metrics(path, metrics(3))
    assert read_metrics(path) == [metrics(1), metrics(2), metrics(3)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_full_disk_is_one_sentence():
    with pytest.raises(OutputError, match="No space left"):
        append_metrics(Path("/dev/full"), metrics(1))


def test_a_folder_with_a_run_is_not_vacant(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.check_vacant()
    folder.path.mkdir()
    folder.metrics.touch()
    folder.check_vacant()  # nothing was trained there yet
    append_metrics(folder.metrics, metrics(1))
    with pytest.raises(OutputError, match="already holds a run; add --resume"):
        folder.check_vacant()


def test_a_trained_state_is_not_overwritten_whatever_else_is_lost(tmp_path):
    folder = RunFolder(tmp_path)
    model, optimizer = make_run()
    save_state(folder.state, make_state(model, optimizer, epoch=0))
    folder.check_vacant()  # ended in its first epoch
    save_state(folder.state, make_state(model, optimizer, epoch=1))
    with pytest.raises(OutputError, match="already holds a run; add --resume"):
        folder.check_vacant()
    folder.state.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="start again in another folder"):
        folder.check_vacant()


def test_an_impossible_name_is_one_sentence(tmp_path):
    folder = RunFolder(tmp_path / ("x" * 300))
    with pytest.raises(OutputError, match=r"File name too long\); choose another --out"), folder.held():
        pass


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"), RunFolder(tmp_path / "file").held():
        pass


def test_one_process_at_a_time_trains_into_a_folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a")
    with folder.held():
        with pytest.raises(OutputError, match="Another process is training into"), folder.held():
            pass
        assert folder.path.is_dir(), "whoever holds it still needs it"
        folder.metrics.touch()
    with folder.held():
        pass
    assert folder.metrics.exists()


def test_a_folder_that_stays_empty_goes_if_it_was_made_for_the_run(tmp_path):
    for folder in (tmp_path / "new", tmp_path / "far" / "below", tmp_path):
        with RunFolder(folder).held():
            pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_resume_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match="no run to resume"):
        RunFolder(tmp_path).load_state()


def test_another_recipe_cannot_be_resumed():
    state = make_state(*make_run())
    check_same_run(state, RECIPE, ("a", "b"), (9, 2))
    twin = apply_settings(RECIPE, ["model=resnet20-bn"])
    one_path = apply_settings(twin, ["loss.paths=compound"])  # which is what batch norm does anyway
    check_same_run(dataclasses.replace(state, recipe=twin.to_dict()), one_path, ("a", "b"), (9, 2))
    with pytest.raises(RecipeError) as caught:
        check_same_run(state, apply_settings(RECIPE, ["lr=0.3", "model=resnet32"]), ("a", "b"), (9, 2))
    assert "optimizer.lr=0.05 (now 0.3)" in str(caught.value)
    assert "model=resnet20 (now resnet32)" in str(caught.value)


def test_what_trains_nothing_else_may_change_on_the_way():
    places = apply_settings(RECIPES["image-folder"], ["init_from=/nfs/a.pth"])
    state = dataclasses.replace(make_state(*make_run()), recipe=places.to_dict())
    moved = apply_settings(RECIPES["image-folder"], ["init_from=b.pth", "data.cache_mb=0", "schedule.evaluate_every=5"])
    check_same_run(state, moved, ("a", "b"), (9, 2))
    with pytest.raises(RecipeError, match=r"init_from=/nfs/a.pth \(now None\)"):
        check_same_run(state, RECIPES["image-folder"], ("a", "b"), (9, 2))
    lists = apply_settings(get_recipe("imagenet-lt/baseline"), ["data.lists=/elsewhere"])
    state = dataclasses.replace(state, recipe=lists.to_dict())
    check_same_run(state, get_recipe("imagenet-lt/baseline"), ("a", "b"), (9, 2))
    with pytest.raises(RecipeError, match="seed=0"):
        check_same_run(state, apply_settings(get_recipe("imagenet-lt/baseline"), ["seed=1"]), ("a", "b"), (9, 2))


@pytest.mark.parametrize(("names", "counts"), [(("a", "c"), (9, 2)), (("a", "b"), (9, 3))])
def test_other_data_cannot_be_resumed(names, counts):
    with pytest.raises(DataError, match="not those that the run was started with"):
        check_same_run(make_state(*make_run()), RECIPE, names, counts)
