"""The parity gate's inputs: reproducible, complete, real ones first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbn_deploy.errors import DataError
from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.preprocessing import normalize
from export.inputs import EXTREMES, REAL, ParityInputs, default_count, read_images

PREPROCESSING = Preprocessing(height=12, width=9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
REAL_PIXELS = np.random.default_rng(0).integers(0, 256, (20, 12, 9, 3), dtype=np.uint8)


def inputs(count: int = 64, real: int = 20, seed: int = 3) -> ParityInputs:
    return ParityInputs(PREPROCESSING, REAL_PIXELS[:real], count, seed)


def test_real_images_first_then_every_extreme() -> None:
    chosen = inputs()
    kinds = [chosen.kind(i) for i in range(len(chosen))]
    assert kinds[:20] == [REAL] * 20
    assert REAL not in kinds[20:]
    assert set(kinds[20:]) == set(EXTREMES)
    np.testing.assert_array_equal(chosen.batch(range(20)), normalize(REAL_PIXELS, PREPROCESSING))


def test_real_images_fill_at_most_half_evenly_spread() -> None:
    chosen = ParityInputs(PREPROCESSING, REAL_PIXELS, 28, 0)
    assert chosen.real_count == 14
    used = chosen.batch(range(14))
    np.testing.assert_array_equal(used[0], normalize(REAL_PIXELS[0], PREPROCESSING))
    np.testing.assert_array_equal(used[-1], normalize(REAL_PIXELS[-1], PREPROCESSING))


def test_an_input_depends_on_seed_and_index_only() -> None:
    forwards = inputs().batch(range(64))
    backwards = inputs().batch(range(63, -1, -1))[::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert not np.array_equal(forwards[20:], inputs(seed=4).batch(range(20, 64)))


def test_every_input_is_finite_and_of_model_shape() -> None:
    batch = inputs(real=0).batch(range(64))
    assert batch.shape == (64, 3, 12, 9)
    assert batch.dtype == np.float32
    assert np.isfinite(batch).all()


def test_the_extremes_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    black, white = (EXTREMES[name](rng, PREPROCESSING) for name in ("black", "white"))
    np.testing.assert_allclose(black[:, 0, 0], -np.array(PREPROCESSING.mean) / PREPROCESSING.std, rtol=1e-6)
    np.testing.assert_allclose(white[:, 0, 0], (1 - np.array(PREPROCESSING.mean)) / PREPROCESSING.std, rtol=1e-6)
    assert set(np.abs(EXTREMES["8 sigma"](rng, PREPROCESSING)).ravel()) == {8.0}
    hot = EXTREMES["hot pixel"](rng, PREPROCESSING)
    assert (np.abs(hot - black).max(0) > 1e-6).sum() == 1
    saturated = EXTREMES["saturated noise"](rng, PREPROCESSING)
    assert len(np.unique(saturated[0])) == 2
    assert len(np.unique(EXTREMES["checkerboard"](rng, PREPROCESSING)[0])) == 2
    assert EXTREMES["noise of 100 sigma"](rng, PREPROCESSING).std() > 80


@pytest.mark.parametrize(("size", "count"), [(32, 256), (64, 256), (96, 113), (128, 64), (224, 64)])
def test_large_images_are_fewer(size: int, count: int) -> None:
    assert default_count(Preprocessing(height=size, width=size)) == count
    assert default_count(Preprocessing(height=size, width=size)) >= 2 * len(EXTREMES)


def test_too_few_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 28"):
        inputs(count=27)


def test_images_of_a_folder(tmp_path: Path) -> None:
    for index in range(5):
        folder = tmp_path / f"class{index % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(REAL_PIXELS[index]).save(folder / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "class0" / "._0.png").write_bytes(b"what macOS leaves beside a file")
    pixels = read_images(tmp_path, PREPROCESSING, limit=3)
    assert pixels.shape == (3, 12, 9, 3)
    np.testing.assert_array_equal(pixels[0], REAL_PIXELS[0])


@pytest.mark.parametrize("content", [None, {}, {"a.txt": b"x"}, {"a.png": b"not a png"}, {"a.jpg": b""}])
def test_a_folder_without_usable_images(tmp_path: Path, content: dict[str, bytes] | None) -> None:
    folder = tmp_path / "images"
    if content is not None:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
    with pytest.raises(DataError):
        read_images(folder, PREPROCESSING, limit=3)
