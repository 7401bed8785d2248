from __future__ import annotations

import numpy as np
import pytest
import torch

from cbn_deploy.data import ViewConfig, load_digits_lt, training_loader
from cbn_deploy.data.samplers import epoch_order, repetitions, sampled_class_distribution

COUNTS = (400, 90, 40, 9, 1)
SAMPLINGS = ("instance_balanced", "square_root", "class_balanced")
# The 0.001 quantile of chi-square with 4 degrees of freedom.
CHI_SQUARE_LIMIT = 18.47


def labels() -> np.ndarray:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))


def test_the_class_shares_are_equation_1_of_kang_et_al() -> None:
    roots = np.sqrt(COUNTS)
    for sampling, expected in zip(
        SAMPLINGS, (np.asarray(COUNTS) / 540, roots / roots.sum(), np.ones(5) / 5), strict=True
    ):
        np.testing.assert_allclose(sampled_class_distribution(COUNTS, sampling), expected, rtol=1e-12)
    assert sampled_class_distribution((5, 0, 5), "class_balanced").tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_classes_come_as_often_as_their_shares_say(sampling: str) -> None:
    y, epochs = labels(), 20
    shown = np.concatenate([y[epoch_order(y, sampling, seed=5, epoch=epoch)] for epoch in range(epochs)])
    assert len(shown) == epochs * len(y)
    expected = sampled_class_distribution(COUNTS, sampling) * len(shown)
    chi_square = ((np.bincount(shown, minlength=5) - expected) ** 2 / expected).sum()
    if sampling == "instance_balanced":
        assert chi_square == 0
    else:
        assert 0 < chi_square < CHI_SQUARE_LIMIT


@pytest.mark.parametrize("sampling", SAMPLINGS[1:])
def test_within_a_class_no_image_is_preferred(sampling: str) -> None:
    y = labels()
    order = epoch_order(y, sampling, seed=0, epoch=0)
    times = np.bincount(order, minlength=len(y))
    for k in range(len(COUNTS)):
        assert np.ptp(times[y == k]) <= 1
    first = [np.flatnonzero(y[epoch_order(y, sampling, seed=0, epoch=e)] == 0)[0] for e in range(5)]
    assert len(set(first)) > 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_order_is_a_function_of_seed_and_epoch(sampling: str) -> None:
    y = labels()
    order = epoch_order(y, sampling, seed=3, epoch=7)
    np.testing.assert_array_equal(order, epoch_order(y, sampling, seed=3, epoch=7))
    for other in ((4, 7), (3, 8)):
        assert not np.array_equal(order, epoch_order(y, sampling, seed=other[0], epoch=other[1]))


def test_runs_from_before_re_sampling_keep_their_order() -> None:
    expected = np.random.default_rng((1, 3, 7)).permutation(540)
    np.testing.assert_array_equal(epoch_order(labels(), "instance_balanced", seed=3, epoch=7), expected)


def test_repetitions_count_what_came_before() -> None:
    assert repetitions(np.array([4, 2, 4, 4, 0, 2])).tolist() == [0, 0, 1, 2, 0, 1]
    assert repetitions(np.array([], dtype=np.int64)).tolist() == []


def test_workers_resuming_and_batch_size_leave_a_re_sampled_epoch_alone() -> None:
    data = load_digits_lt()
    views = ViewConfig(padding=2, flip=False, autoaugment=False, cutout=8)

    def epoch(number: int, **options: int) -> tuple[torch.Tensor, torch.Tensor]:
        loader = training_loader(data, views, seed=2, sampling="class_balanced", **{"batch_size": 64, **options})
        batches = list(loader.epoch(number))
        assert sum(len(batch.labels) for batch in batches) == len(data.train)
        return torch.cat([batch.strong for batch in batches]), torch.cat([batch.labels for batch in batches])

    strong, shown = epoch(3)
    for options in ({"workers": 1}, {"batch_size": 100}):
        again, labels_again = epoch(3, **options)
        assert torch.equal(labels_again, shown)
        assert torch.equal(again, strong)
    assert not torch.equal(epoch(4)[1], shown)


def test_an_image_shown_again_is_distorted_anew() -> None:
    data = load_digits_lt()
    views = ViewConfig(padding=2, flip=False, autoaugment=False, cutout=8)
    loader = training_loader(data, views, batch_size=64, seed=2, sampling="class_balanced")
    batches = list(loader.epoch(0))
    shown, strong = torch.cat([b.labels for b in batches]), torch.cat([b.strong for b in batches])
    rarest = int(np.argmin(data.class_counts))
    views_of_rarest = strong[shown == rarest]
    assert len(views_of_rarest) > 1.5 * data.class_counts[rarest]
    assert len(torch.unique(views_of_rarest, dim=0)) > 0.9 * len(views_of_rarest)


@pytest.mark.parametrize(
    ("counts", "sampling", "message"),
    [
        ((), "square_root", "counts"),
        ((0, 0), "square_root", "counts"),
        ((3, -1), "square_root", "counts"),
        ((3, 1), "random", "sampling must be one of"),
    ],
)
def test_impossible_shares_are_refused(counts: tuple[int, ...], sampling: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled_class_distribution(counts, sampling)
