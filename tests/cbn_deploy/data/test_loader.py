from __future__ import annotations

import numpy as np
import pytest
import torch

from cbn_deploy.data import (
    ArrayImageSet,
    LongTailedData,
    TrainingBatch,
    ViewConfig,
    evaluation_batches,
    load_digits_lt,
    training_loader,
)
from cbn_deploy.data.sharding import Sharding
from cbn_deploy.errors import DataError
from cbn_deploy.runtime import Preprocessing

PREPROCESSING = Preprocessing(height=32, width=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
PLAIN = ViewConfig(padding=0, flip=False, autoaugment=False, cutout=0)


def make_data(n: int) -> LongTailedData:
    """n images whose label is their index, so that a batch tells which images it has."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    images = ArrayImageSet(pixels, np.arange(n))
    names = tuple(map(str, range(n)))
    return LongTailedData(name="test", train=images, test=images, class_names=names, preprocessing=PREPROCESSING)


def views_by_index(batches: list[TrainingBatch]) -> dict[int, tuple[bytes, bytes]]:
    views = {}
    for batch in batches:
        assert batch.weak is not None
        for label, strong, weak in zip(batch.labels.tolist(), batch.strong, batch.weak, strict=True):
            views[label] = strong.numpy().tobytes(), weak.numpy().tobytes()
    return views


def test_batches_have_the_promised_form() -> None:
    loader = training_loader(load_digits_lt(), ViewConfig(flip=False), batch_size=64, seed=0, two_views=True)
    batches = list(loader.epoch(0))
    assert [len(batch.labels) for batch in batches] == [64] * 6 + [54]
    assert len(loader) == 7
    batch = batches[0]
    assert batch.weak is not None
    assert batch.strong.shape == batch.weak.shape == (64, 3, 32, 32)
    assert (batch.strong.dtype, batch.weak.dtype, batch.labels.dtype) == (torch.float32, torch.float32, torch.int64)
    assert not torch.equal(batch.strong, batch.weak)
    single = next(iter(training_loader(load_digits_lt(), ViewConfig(), batch_size=8, seed=0).epoch(0)))
    assert single.weak is None


def test_undistorted_views_are_the_evaluation_view() -> None:
    data = make_data(20)
    ((images, labels),) = evaluation_batches(data.train, PREPROCESSING, 100)
    (batch,) = training_loader(data, PLAIN, batch_size=32, seed=0, two_views=True).epoch(0)
    assert batch.weak is not None
    assert sorted(batch.labels.tolist()) == labels.tolist()
    assert torch.equal(batch.strong, images[batch.labels])
    assert torch.equal(batch.weak, images[batch.labels])
    pixels = data.train.pixels(3).astype(np.float64) / 255
    expected = (pixels - PREPROCESSING.mean) / PREPROCESSING.std
    np.testing.assert_allclose(images[3].numpy(), expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_every_image_comes_once_an_epoch_in_a_new_order() -> None:
    loader = training_loader(make_data(50), PLAIN, batch_size=16, seed=0)
    orders = [torch.cat([batch.labels for batch in loader.epoch(epoch)]).tolist() for epoch in (0, 1, 0)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    assert orders[0] != list(range(50))


def test_a_view_depends_on_seed_epoch_and_index_alone() -> None:
    data = make_data(48)

    def views(batch_size: int, seed: int, epoch: int) -> dict[int, tuple[bytes, bytes]]:
        loader = training_loader(data, ViewConfig(), batch_size=batch_size, seed=seed, two_views=True)
        return views_by_index(list(loader.epoch(epoch)))

    reference = views(16, 7, 3)
    assert views(48, 7, 3) == reference
    for other in (views(16, 8, 3), views(16, 7, 4)):
        different = sum(reference[index] != other[index] for index in range(48))
        assert different > 40


def test_workers_and_resuming_change_nothing() -> None:
    data = make_data(40)
    alone = training_loader(data, ViewConfig(), batch_size=16, seed=1, two_views=True)
    helped = training_loader(data, ViewConfig(), batch_size=16, seed=1, two_views=True, workers=2)
    expected = [list(alone.epoch(epoch)) for epoch in range(3)]
    next(iter(helped.epoch(0)))  # an interrupted epoch must leave no trace
    for epoch in (2, 1):
        for ours, theirs in zip(expected[epoch], helped.epoch(epoch), strict=True):
            assert ours.weak is not None
            assert theirs.weak is not None
            assert torch.equal(ours.labels, theirs.labels)
            assert torch.equal(ours.strong, theirs.strong)
            assert torch.equal(ours.weak, theirs.weak)


def test_global_random_state_is_neither_used_nor_changed() -> None:
    loader = training_loader(make_data(8), ViewConfig(), batch_size=8, seed=1)
    np.random.seed(0)
    torch_before = torch.get_rng_state()
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    first = next(iter(loader.epoch(0))).strong
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index, arg-type]
    assert torch.equal(torch.get_rng_state(), torch_before)
    np.random.seed(1)
    assert torch.equal(next(iter(loader.epoch(0))).strong, first)


@pytest.mark.parametrize(("n", "sizes"), [(32, [16, 16]), (33, [16, 16]), (34, [16, 16, 2]), (3, [3])])
def test_a_trailing_single_image_is_dropped(n: int, sizes: list[int]) -> None:
    loader = training_loader(make_data(n), PLAIN, batch_size=16, seed=0)
    assert [len(batch.labels) for batch in loader.epoch(0)] == sizes
    assert len(loader) == len(sizes)


def test_wrong_arguments() -> None:
    data = make_data(4)
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        training_loader(data, PLAIN, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="seed must be"):
        training_loader(data, PLAIN, batch_size=2, seed=-1)
    with pytest.raises(ValueError, match="workers must not be negative"):
        training_loader(data, PLAIN, batch_size=2, seed=0, workers=-1)
    with pytest.raises(ValueError, match="epoch must not be negative"):
        training_loader(data, PLAIN, batch_size=2, seed=0).epoch(-1)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(evaluation_batches(data.test, PREPROCESSING, 0))
    with pytest.raises(DataError, match="at least 2 are needed"):
        training_loader(make_data(1), PLAIN, batch_size=2, seed=0)


def test_evaluation_keeps_order_and_resizes_where_the_model_is_larger() -> None:
    data = make_data(5)
    larger = Preprocessing(height=48, width=48)
    batches = list(evaluation_batches(data.test, larger, 2))
    assert [tuple(images.shape) for images, _ in batches] == [(2, 3, 48, 48), (2, 3, 48, 48), (1, 3, 48, 48)]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sampling", ["instance_balanced", "class_balanced"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_the_shares_of_all_ranks_are_the_batch_of_one_process(sampling, accumulate, world_size) -> None:
    """Image by image, in order and distorted alike: N ranks train the same run."""
    data = make_data(35)  # batches of 16, 16 and 3

    def batches(rank: int, world_size: int, portions: int) -> list[TrainingBatch]:
        sharding = Sharding(rank=rank, world_size=world_size, accumulate=portions)
        loader = training_loader(
            data, ViewConfig(), batch_size=16, seed=2, two_views=True, sampling=sampling, sharding=sharding
        )
        assert len(loader) == 3
        return list(loader.epoch(4))

    ranks = [batches(rank, world_size, accumulate) for rank in range(world_size)]
    whole = batches(0, 1, accumulate)
    for portion, *shares in zip(whole, *ranks, strict=True):
        assert {share.ends_step for share in shares} == {portion.ends_step}
        assert sum(share.weight for share in shares) == pytest.approx(portion.weight)
        for field in ("strong", "weak", "labels"):
            assert torch.equal(torch.cat([getattr(share, field) for share in shares]), getattr(portion, field))
    undivided = batches(0, 1, 1)
    ends = [number for number, portion in enumerate(whole, start=1) if portion.ends_step]
    for batch, start, end in zip(undivided, [0, *ends], ends, strict=False):
        assert torch.equal(torch.cat([portion.strong for portion in whole[start:end]]), batch.strong)
        assert sum(portion.weight for portion in whole[start:end]) == pytest.approx(1.0)
        assert min(len(portion.labels) for portion in whole[start:end]) >= 2


def test_a_portion_with_one_image_is_not_made_and_an_empty_share_is() -> None:
    assert [len(share) for share in Sharding(accumulate=4).shares(5)] == [3, 2]
    assert [len(share) for share in Sharding(accumulate=4).shares(3)] == [3]
    assert [[len(share) for share in Sharding(rank=rank, world_size=4).shares(3)] for rank in range(4)] == [
        [1],
        [1],
        [1],
        [0],
    ]
    sharding = Sharding(rank=3, world_size=4)
    (empty,) = training_loader(make_data(3), PLAIN, batch_size=4, seed=0, two_views=True, sharding=sharding).epoch(0)
    assert empty.strong.shape == (0, 3, 32, 32)
    assert empty.weak is not None
    assert empty.weak.dtype == torch.float32
    assert (empty.labels.shape, empty.labels.dtype, empty.weight) == ((0,), torch.int64, 0.0)


def test_a_rank_must_exist() -> None:
    with pytest.raises(ValueError, match="rank 2 does not exist among 2"):
        Sharding(rank=2, world_size=2)
    with pytest.raises(ValueError, match="accumulate must be at least 1"):
        Sharding(accumulate=0)


def test_moving_a_batch_keeps_all_of_it() -> None:
    batch = TrainingBatch(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), 0.25, False)
    moved = batch.to(torch.device("meta"))
    assert {moved.strong.device.type, moved.weak.device.type, moved.labels.device.type} == {"meta"}
    assert (moved.weight, moved.ends_step) == (0.25, False)
    assert TrainingBatch(batch.strong, None, batch.labels).to(torch.device("meta")).weak is None
