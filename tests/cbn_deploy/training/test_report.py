from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cbn_deploy.norm import MixtureHealth
from cbn_deploy.training.catalog import get_recipe
from cbn_deploy.training.comparison import compare
from cbn_deploy.training.evaluation import Confusion, evaluate_predictions
from cbn_deploy.training.folder import RunFolder
from cbn_deploy.training.metrics_log import EpochMetrics
from cbn_deploy.training.plots import draw_pictures
from cbn_deploy.training.progress import duration
from cbn_deploy.training.recipe import apply_settings
from cbn_deploy.training.report import render_html, write_report
from cbn_deploy.training.report_data import RunReport


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_data(self, data):
        self.cells.append(data.strip())


def make_report(classes=3, epochs=4, mixture=True, counts=None, comparison=None):
    rng = np.random.default_rng(0)
    counts = counts or tuple(int(300 * 0.01 ** (k / (classes - 1))) for k in range(classes))
    labels = np.repeat(np.arange(classes), 8)
    logits = rng.normal(size=(len(labels), classes)) + 2 * np.eye(classes)[labels]
    history = tuple(
        EpochMetrics(
            epoch=epoch,
            loss=2 / epoch,
            classification_loss=1.5 / epoch,
            split_loss=1.2 / epoch,
            consistency_loss=-1.5,
            train_accuracy=epoch / 10,
            learning_rate=0.1,
            images_per_second=50.0,
            seconds=3.0,
            top1=0.1 * epoch if epoch % 2 == 0 else None,
            many=0.2 if epoch % 2 == 0 else None,
        )
        for epoch in range(1, epochs + 1)
    )
    layer = MixtureHealth(occupancy=(0.5, 0.3, 0.2), pixel_entropy=0.4)
    return RunReport(
        recipe={"name": "x", "seed": 3, "schedule": {"epochs": epochs}},
        settings={"name": "x", "schedule.epochs": epochs},
        title="a <b>title</b>",
        evaluation=evaluate_predictions(logits, labels, counts),
        comparison=comparison,
        confusions=(Confusion(true=0, predicted=1, count=3),),
        history=history,
        class_names=("<script>alert(1)</script>", *(f"class {k}" for k in range(1, classes))),
        class_counts=counts,
        test_images=len(labels),
        mixture={f"layer{k}.bn": layer for k in range(5)} if mixture else {},
        parameters=1234567,
        seconds=3725.0,
        device="cpu",
        threads=1,
        versions={"torch": "2"},
    )


@pytest.mark.parametrize(
    "report",
    [
        make_report(),
        make_report(classes=2, epochs=1, mixture=False),
        make_report(classes=120, epochs=30),
        make_report(classes=3, counts=(9, 9, 1)),
    ],
    ids=["small", "one epoch, no mixture", "many classes", "only few-shot classes"],
)
def test_every_report_has_its_pictures(report):
    pictures = draw_pictures(report)
    names = ["history.png", "per_class_recall.png", "shot_groups.png", *(["mixture.png"] if report.mixture else [])]
    assert [picture.name for picture in pictures] == names
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 10  # something is drawn
        assert len(picture.alternative_text) > 40


def test_a_report_without_a_history_has_the_other_pictures_and_all_epochs():
    report = dataclasses.replace(make_report(), history=())
    pictures = draw_pictures(report)
    assert [picture.name for picture in pictures] == ["per_class_recall.png", "shot_groups.png", "mixture.png"]
    assert "4 epochs in 1 h 02 min" in " ".join(" ".join(Page(render_html(report, pictures)).cells).split())


def test_a_history_without_its_tests_does_not_claim_that_there_are_no_test_images():
    report = make_report()
    whole, short, untested = (
        draw_pictures(dataclasses.replace(report, history=report.history[:epochs]))[0].alternative_text
        for epochs in (4, 3, 1)
    )
    assert whole.endswith("40.0% on augmented training images and 40.0% on the test set.")
    assert short.endswith("30.0% on augmented training images and 20.0% on the test set.")
    assert untested.endswith("10.0% on augmented training images.")


def test_a_picture_shows_its_data():
    good, bad = make_report(), make_report(counts=(300, 290, 280))
    for ours, theirs in zip(draw_pictures(good)[1:3], draw_pictures(bad)[1:3], strict=True):
        assert ours.png != theirs.png
    assert [p.png for p in draw_pictures(good)] == [p.png for p in draw_pictures(make_report())]


def test_class_names_are_neither_formulas_nor_warnings():
    """A lone backslash between dollars is no formula that matplotlib could read; hardly a font has every script."""
    report = dataclasses.replace(make_report(), class_names=(r"$\frac{x$", "日本", "a_b"))
    assert all(picture.png for picture in draw_pictures(report))


def test_the_page_needs_no_other_file_and_escapes_names():
    report = make_report()
    text = render_html(report, draw_pictures(report))
    page = Page(text)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert all(image["alt"] for image in page.images)
    assert "<script" not in text
    assert "<script>alert(1)</script>" in page.cells
    assert 'lang="en"' in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (190, "3 min 10 s"), (7500, "2 h 05 min")]
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_the_page_says_what_the_report_knows():
    report = make_report()
    cells = Page(render_html(report, [])).cells
    assert f"{100 * report.evaluation.top1:.1f} %" in cells
    assert f"{100 * report.evaluation.few:.1f} %" in cells
    assert "schedule.epochs" in cells
    text = " ".join(cells)
    assert "1 h 02 min" in text
    assert "1,234,567 parameters" in text


def test_the_paper_stands_beside_the_run():
    recipe = apply_settings(get_recipe("cifar100-lt/rho100/cbn"), ["epochs=4"])
    report = make_report(comparison=compare(recipe, [10_847]))
    page = Page(render_html(report, []))
    text = " ".join(page.cells)
    assert "Not the published setting:" in page.cells
    assert "epochs 4 instead of 400" in text
    assert "Table 2: Baseline + CBN; Table 3: (V) CBN" in text
    for figure in ("52.16 %", "69.26 %", "54.18 %", "30.34 %", "52.0 %"):
        assert figure in page.cells
    assert {"PaCo", "Table 4"} <= set(page.cells)
    assert "norm.density_scale=rsqrt_channels" in text
    assert report.to_dict()["comparison"]["experiment"] == "cifar100-lt/rho100/cbn"


def test_an_own_control_says_so():
    report = make_report(comparison=compare(get_recipe("cifar100-lt/rho100/bn-two-views"), [10_847]))
    text = " ".join(Page(render_html(report, [])).cells)
    assert "The setting is that of" in text
    assert "not in the paper: a control of ours" in text
    plotted = make_report(comparison=compare(get_recipe("cifar100-lt/rho100/m2"), [10_847]))
    assert "without printing a figure" in " ".join(Page(render_html(plotted, [])).cells)


def test_no_counterpart_no_section():
    assert "Beside the paper" not in render_html(make_report(), [])


def test_an_absent_group_is_a_dash():
    report = make_report(counts=(300, 290, 280))
    assert report.evaluation.few is None
    assert "–" in Page(render_html(report, [])).cells


def test_a_group_without_test_images_is_not_said_to_have_no_class():
    report = make_report(counts=(300, 290, 3))
    labels = np.repeat([0, 1], 8)
    report = dataclasses.replace(report, evaluation=evaluate_predictions(np.eye(3)[labels], labels, (300, 290, 3)))
    groups = draw_pictures(report)[2]
    assert groups.alternative_text == "Bar chart: many 100.0%, medium no such class, few no test images."
    assert "no such class, or none with test images" in " ".join(Page(render_html(report, [])).cells).replace("\n", " ")


def test_report_json_is_plain_and_complete(tmp_path):
    report = make_report()
    write_report(report, RunFolder(tmp_path))
    plain = json.loads((tmp_path / "report.json").read_text())
    assert plain["evaluation"] == report.evaluation.to_dict()
    assert [row["group"] for row in plain["classes"]] == ["many", "medium", "few"]
    assert plain["mixture"]["layer0.bn"] == {"occupancy": [0.5, 0.3, 0.2], "pixel_entropy": 0.4, "dead": 0}
    assert plain["confusions"] == [{"true": report.class_names[0], "predicted": "class 1", "count": 3}]
    assert len(plain["history"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plots", "report.html", "report.json"]
