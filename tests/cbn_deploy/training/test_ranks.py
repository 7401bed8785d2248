"""Several real processes train one run: the same steps, the same files, one voice."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cbn_deploy.checkpoint import load_checkpoint
from cbn_deploy.training import Recipe, apply_settings, train
from cbn_deploy.training.ranks import Ranks, joined_ranks
from cbn_deploy.training.state import load_state
from tests.cbn_deploy.training.rank_runs import STEPS, KeepFirstEpoch, on_this_rank, some_steps
from tests.ranks import run_on_ranks
from tests.reference.tolerances import tolerance
from tests.tiny_runs import TRAIN_COUNTS

# 5 steps an epoch of up to 6 of 28 images, whose portions and shares differ; the second epoch trains the classifier.
SETTINGS = ("model=resnet8", "norm.components=2", "epochs=2", "batch_size=6", "accumulate=2", "decoupled.share=0.5")


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    return apply_settings(tiny_recipe, SETTINGS)


@pytest.fixture(scope="module")
def alone(recipe: Recipe, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(recipe, photos, folder / "run", progress=KeepFirstEpoch(folder / "run", folder / "first epoch"))
    return folder


@pytest.fixture(scope="module")
def together(recipe: Recipe, photos: Path, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    shutil.copytree(alone / "first epoch", folder / "begun alone")
    run_on_ranks(on_this_rank, 2, folder, recipe, photos)
    return folder


def assert_same_run(ours: Path, theirs: Path) -> None:
    """The same weights, statistics and scores, but for rounding; the same files."""
    assert sorted(p.relative_to(ours) for p in ours.rglob("*")) == sorted(
        p.relative_to(theirs) for p in theirs.rglob("*")
    )
    states = [load_checkpoint(folder / "model.pt").state_dict for folder in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(
            tensor, states[1][name], **tolerance("two float32 runs"), msg=lambda t, n=name: f"{n}: {t}"
        )
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (ours, theirs)
    ]
    for our_row, their_row in zip(*rows, strict=True):
        for key in ("loss", "classification_loss", "consistency_loss", "train_accuracy", "learning_rate", "ece"):
            expected = their_row[key]  # None: no consistency loss in the second stage
            assert our_row[key] == (expected if expected is None else pytest.approx(expected, rel=1e-4)), key
        assert our_row["top1"] == pytest.approx(their_row["top1"])


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_two_ranks_are_those_of_one(name: str, together: Path) -> None:
    """float64, uneven and empty shares: weights, momentum's effect, running statistics, logged averages."""
    expected = some_steps(name, Ranks())
    for rank in range(2):
        found = torch.load(together / f"steps{rank}.pt")[name]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, **tolerance("float64 gradient"), msg=lambda t, k=key: f"{k}: {t}"
            )


def test_a_run_of_two_ranks_is_that_of_one(together: Path, alone: Path) -> None:
    assert_same_run(together / "run", alone / "run")


def test_two_ranks_go_on_with_what_one_has_begun(together: Path, alone: Path) -> None:
    assert_same_run(together / "begun alone", alone / "run")


def test_one_goes_on_with_what_two_ranks_have_begun(together: Path, alone: Path, recipe, photos, tmp_path) -> None:
    begun = shutil.copytree(together / "first epoch", tmp_path / "begun")
    assert load_state(begun / "last.pt").epoch == 1
    train(recipe, photos, begun, resume=True)
    assert_same_run(begun, alone / "run")


def test_the_state_tells_nothing_of_ranks(together: Path, alone: Path) -> None:
    ours, theirs = (load_state(folder / "first epoch" / "last.pt") for folder in (together, alone))
    assert ours.model.keys() == theirs.model.keys()
    assert ours.recipe == theirs.recipe
    assert torch.equal(ours.random_state, theirs.random_state)
    assert ours.optimizer["param_groups"] == theirs.optimizer["param_groups"]


def launched(words: list[str], world_size: int = 2) -> list[subprocess.Popen[str]]:
    """cbn-train on every rank, as torchrun starts it, but with a stderr for each."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", "cbn_deploy.cli.train", *words, "--device", "cpu"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments(world_size)
    ]


def environments(world_size: int) -> list[dict[str, str]]:
    """What torchrun tells each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common = {**os.environ, **shared, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def words(out: Path, photos: Path) -> list[str]:
    settings = [*SETTINGS, "data.image_size=16", "views.cutout=4"]
    return ["image-folder", "--data", str(photos), "--out", str(out), *(w for s in settings for w in ("--set", s))]


def test_a_rank_that_fails_ends_all_with_one_sentence(photos: Path, tmp_path: Path) -> None:
    """One damaged image, which only one of the ranks reads."""
    broken = shutil.copytree(photos, tmp_path / "photos")
    victim = broken / "train" / next(iter(TRAIN_COUNTS)) / "0.png"
    victim.write_bytes(victim.read_bytes()[:60])
    processes = launched(words(tmp_path / "out", broken))
    outputs = [process.communicate(timeout=150) for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs
    errors = "".join(stderr for _, stderr in outputs)
    assert errors.count("Error:") == 1
    assert "0.png" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out" / "model.pt").exists()


def test_a_mistake_that_all_make_is_said_once(photos: Path, tmp_path: Path) -> None:
    processes = launched([*words(tmp_path / "out", photos), "--set", "nonsense=1"])
    errors = [process.communicate(timeout=150)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "There is no setting 'nonsense'" in errors[0]
    assert errors[1] == ""


def test_a_rank_that_is_killed_ends_all_with_one_sentence(photos: Path, tmp_path: Path) -> None:
    processes = launched([*words(tmp_path / "out", photos), "--set", "epochs=500"])
    assert processes[0].stdout is not None
    line = processes[0].stdout.readline()
    assert "resnet8" in line
    processes[1].kill()
    _, stderr = processes[0].communicate(timeout=150)
    processes[1].communicate()
    assert processes[0].returncode == 2
    assert "ended without a word" in stderr
    assert "--resume" in stderr
    assert "Traceback" not in stderr


LEAVE = """
import pathlib
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from cbn_deploy.training.ranks import joined_ranks

def gloo_threads():
    return sum("gloo" in (task / "comm").read_text() for task in pathlib.Path("/proc/self/task").iterdir())

with joined_ranks("cpu"):
    DistributedDataParallel(nn.Linear(2, 2))
    joined = gloo_threads()
print(joined, gloo_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed under /proc on Linux only")
def test_no_thread_of_the_process_group_outlives_it() -> None:
    """One that did could abort a finished run while the interpreter shuts down."""
    process = subprocess.run(
        [sys.executable, "-c", LEAVE],
        env=environments(1)[0],
        stdout=subprocess.PIPE,
        text=True,
        timeout=150,
        check=True,
    )
    joined, left = map(int, process.stdout.split())
    assert joined > 0
    assert left == 0


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with joined_ranks("cpu") as ranks:
        assert ranks == Ranks(rank=0, world_size=1)
        assert ranks.from_first(lambda: 3) == 3
        assert ranks.to_first(4) == [4]
        assert torch.equal(ranks.sum(torch.ones(2)), torch.ones(2))
