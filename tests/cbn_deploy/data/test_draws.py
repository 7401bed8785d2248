from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cbn_deploy.data.draws import STRONG, WEAK, uniforms, view_generator

WORDS = st.integers(0, 2**32 - 1)
IMAGES = st.lists(st.tuples(WORDS, st.one_of(st.just(0), WORDS)), min_size=1, max_size=5)


@given(kind=st.sampled_from([STRONG, WEAK]), seed=WORDS, epoch=WORDS, images=IMAGES, count=st.integers(0, 12))
def test_many_images_have_the_numbers_of_their_own_generators(
    kind: int, seed: int, epoch: int, images: list[tuple[int, int]], count: int
) -> None:
    indices, repetitions = np.array(images, dtype=np.int64).T
    together = uniforms(kind, seed, epoch, indices, repetitions, count)
    alone = [view_generator(kind, seed, epoch, index, repetition).random(count) for index, repetition in images]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_no_image_has_no_numbers() -> None:
    none = np.empty(0, np.int64)
    assert uniforms(STRONG, 0, 0, none, none, 10).shape == (0, 10)


def test_a_view_is_drawn_from_its_own_seed() -> None:
    """As in every run so far: four words without a repetition, five with one."""
    assert view_generator(STRONG, 3, 5, 7, 0).random() == np.random.default_rng((2, 3, 5, 7)).random()
    assert view_generator(WEAK, 3, 5, 7, 1).random() == np.random.default_rng((3, 3, 5, 7, 1)).random()
