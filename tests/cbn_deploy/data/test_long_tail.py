from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbn_deploy.data import load_cifar_lt, long_tail_counts, long_tail_subset
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import shot_group


def test_counts_are_the_published_ones() -> None:
    assert long_tail_counts(5000, 100, 10) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    hundred = long_tail_counts(500, 100, 100)
    assert sum(hundred) == 10_847
    groups = [shot_group(count) for count in hundred]
    assert [groups.count(group) for group in ("many", "medium", "few")] == [35, 35, 30]


@given(st.integers(1, 5000), st.floats(1, 1000), st.integers(1, 200))
def test_counts_fall_from_n_max(n_max: int, rho: float, classes: int) -> None:
    counts = long_tail_counts(n_max, rho, classes)
    assert len(counts) == classes
    assert counts[0] == n_max
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= int(n_max / rho) - 1 if classes > 1 else True


@pytest.mark.parametrize(("n_max", "rho", "classes"), [(0, 10, 10), (10, 0.5, 10), (10, float("nan"), 10), (10, 10, 0)])
def test_impossible_counts_are_refused(n_max: int, rho: float, classes: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        long_tail_counts(n_max, rho, classes)


def test_subset_takes_the_first_of_one_shuffle_after_another() -> None:
    labels = np.array([1, 0, 1, 0, 0, 1, 1, 0])
    random_state = np.random.RandomState(0)
    zeros, ones = [1, 3, 4, 7], [0, 2, 5, 6]
    random_state.shuffle(zeros)
    random_state.shuffle(ones)
    assert long_tail_subset(labels, [3, 2]).tolist() == zeros[:3] + ones[:2]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="Class 1 has 1 training images but 2 are asked for"):
        long_tail_subset(np.array([0, 0, 1]), [2, 2])


# Of the index list as little-endian int32; computed by others from the official files.
PUBLISHED = {
    "cifar10": {100: "ca97f03cbf4d69c4", 50: "2477fffcd09bcacd", 10: "c06ed1d31500880c"},
    "cifar100": {100: "92db61d4d8847a2a", 50: "9ae2c06907a23afb", 10: "3b58e94c18104966"},
}


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_rule_agrees_with_the_published_subset(kind: str, shared_data: Path) -> None:
    """The packing knows the official places of its own images only, but the rule permutes places within a class: so the
    published places of a class must have the ranks that any labelling with 5,000 / 500 images a class gives."""
    classes = {"cifar10": 10, "cifar100": 100}[kind]
    with np.load(shared_data / f"{kind}-lt.npz") as pack:
        index, known = pack["train_index"], pack["train_labels"]
    counts = long_tail_counts(50_000 // classes, 10, classes)
    ours = long_tail_subset(np.repeat(np.arange(classes), 50_000 // classes), counts)
    ends = np.cumsum(counts)
    for label, (end, count) in enumerate(zip(ends, counts, strict=True)):
        ranks = [np.argsort(np.argsort(places)) for places in (ours[end - count : end], index[known == label])]
        np.testing.assert_array_equal(*ranks)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("rho", [100, 50, 10])
def test_loaded_subset_has_the_published_hash(kind: str, rho: int, shared_data: Path) -> None:
    train = load_cifar_lt(kind, shared_data, rho).train  # type: ignore[arg-type]
    digest = hashlib.sha256(np.asarray([train.name(i).split()[1] for i in range(len(train))]).astype("<i4").tobytes())
    assert digest.hexdigest()[:16] == PUBLISHED[kind][rho]
