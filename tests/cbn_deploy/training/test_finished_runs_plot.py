"""The picture of cbn-train --compare: its curves and gains are those of the runs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cbn_deploy.training import finished_runs_plot
from cbn_deploy.training.finished_runs import FIGURES, Finished, Row
from cbn_deploy.training.finished_runs_plot import draw_comparison, mean_curve


def row(label, recalls, first_seed=0):
    """A run for every list of recalls."""
    counts = [10 * len(recalls[0]) - 7 * k for k in range(len(recalls[0]))]
    runs = [
        Finished(
            folder=Path(label),
            settings={"model": label},
            seeds=(first_seed + seed, 0),
            data=tuple((f"class <{k}>", count, 4) for k, count in enumerate(counts)),
            figures=dict.fromkeys(FIGURES, 0.5),
            recalls=tuple(one),
            top1=((5, 0.25), (10, float(np.mean([r for r in one if r is not None])))),
        )
        for seed, one in enumerate(recalls)
    ]
    return Row(label=label, runs=tuple(runs))


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, beside its bytes."""
    figures = []
    real = finished_runs_plot.rendered
    monkeypatch.setattr(
        finished_runs_plot, "rendered", lambda figure, kind: figures.append(figure) or real(figure, kind)
    )
    return figures


def bars(figure: Figure) -> list[float]:
    return [patch.get_height() for patch in figure.axes[1].patches]


def test_bars_are_mean_gains_and_dots_are_seeds(drawn):
    base = row("bn", [[1.0, 0.5, 0.25], [1.0, 0.25, 0.0]])
    svg = draw_comparison([base, row("cbn", [[0.75, 0.5, 0.75], [1.0, 0.5, 0.25]])], "svg").decode()
    (figure,) = drawn
    np.testing.assert_allclose(bars(figure), [-0.125, 0.125, 0.375])
    dots = [line.get_ydata() for line in figure.axes[1].lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, [[-0.25, 0, 0.5], [0, 0.25, 0.25]])
    # Text is drawn as outlines, with the words in comments.
    for text in ("Gain in recall over bn", "bn (2 seeds)", "cbn (2 seeds)"):
        assert f"<!-- {text} -->" in svg


def test_a_gain_is_between_runs_of_one_seed_and_of_classes_with_test_images(drawn):
    base = row("bn", [[0.5, None], [0.0, None]])
    draw_comparison([base, row("cbn", [[1.0, None]], first_seed=1), row("other", [[1.0, None]], first_seed=7)])
    assert bars(drawn[0]) == [1.0]


def test_many_classes_are_put_together_by_frequency(drawn):
    classes = 130
    ours = [0.5 + k / 1000 for k in range(classes)]
    ours[1] = None
    draw_comparison([row("bn", [[0.5] * classes]), row("cbn", [ours])])
    found = bars(drawn[0])
    assert len(found) == 50
    assert found[0] == pytest.approx((0 + 0.002) / 2)  # three classes, of which one has no test images
    assert found[-1] == pytest.approx((0.128 + 0.129) / 2)


@pytest.mark.parametrize(
    ("rows", "title"),
    [
        ([row("bn", [[0.5, 0.25]])], "Gain in recall: there is one recipe only"),
        ([row("bn", [[0.5]]), row("cbn", [[0.5]], first_seed=3)], "Gain in recall: no two recipes share a seed"),
    ],
)
def test_nothing_to_compare_is_said(rows, title, drawn):
    with Image.open(io.BytesIO(draw_comparison(rows))) as picture:
        assert picture.width > 1000
    assert drawn[0].axes[1].get_title(loc="left") == title


def test_the_same_runs_give_the_same_bytes():
    rows = [row(str(number), [[0.5, number / 10]]) for number in range(10)]  # more than there are colours
    for kind in ("png", "svg"):
        assert draw_comparison(rows, kind) == draw_comparison(rows, kind)


def test_a_mean_is_of_epochs_that_all_seeds_have():
    assert mean_curve([[(1, 0.0), (2, 0.5), (4, 1.0)], [(2, 0.25), (4, 0.5), (6, 1.0)]]) == [(2, 0.375), (4, 0.75)]
    assert mean_curve([[(1, 0.0)], [(2, 0.25)]]) == []
