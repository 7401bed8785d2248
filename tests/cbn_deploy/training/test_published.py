"""The published figures against what else the paper's text says of them."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from cbn_deploy.training.experiments import EXPERIMENTS, SECTIONS
from cbn_deploy.training.published import per_cent_as_printed, published_results

FILE = json.loads(resources.files("cbn_deploy.training").joinpath("published.json").read_text("utf-8"))
TABLES = {table["source"]: table for table in FILE["tables"]}
RESULTS = published_results()


def figure(source, method, data):
    (row,) = [r for r in RESULTS if (r.source, r.method, r.data) == (source, method, data)]
    return row


def test_every_row_has_a_figure_for_every_column():
    for table in TABLES.values():
        for row in table["rows"]:
            for measure in ("top1", "many", "medium", "few", "gain"):
                assert measure not in row or len(row[measure]) == len(table["data"])
    assert all(0.2 < row.top1 < 1 for row in RESULTS)


def test_the_gains_that_table_2_prints_are_its_differences():
    baseline, *others = TABLES["Table 2"]["rows"]
    assert len(others) == 4
    for row in others:
        for top1, start, gain in zip(row["top1"], baseline["top1"], row["gain"], strict=True):
            assert round(top1 - start, 2) == gain


def test_the_gains_that_the_text_names():
    table = {row["experiment"]: row["top1"] for row in TABLES["Table 2"]["rows"]}
    assert round(table["cbn"][0] - table["baseline"][0], 2) == 2.25
    steps = [round(full - without, 2) for full, without in zip(table["cbn-sbn-dpl"], table["cbn-sbn"], strict=True)]
    # The text says CIFAR-100-LT; the notes say so, too.
    assert steps[:3] == [0.67, 1.49, 1.38]
    assert any("0.67" in note for note in TABLES["Table 2"]["notes"])


def test_table_4_is_the_last_row_of_table_2_but_for_one_figure():
    full, ours = TABLES["Table 2"]["rows"][-1]["top1"], TABLES["Table 4"]["rows"][-1]["top1"]
    differing = [data for data, a, b in zip(TABLES["Table 2"]["data"], full, ours, strict=True) if abs(a - b) > 0.0501]
    assert differing == ["cifar100-lt/rho50"]
    for table in ("Table 2", "Table 4"):
        assert any("60.0" in note and "58.13" in note for note in TABLES[table]["notes"])


def test_table_3_adds_up_with_34_36_and_30_classes():
    rows = [row for row in RESULTS if row.source == "Table 3"]
    assert len(rows) == 8
    for row in rows:
        mean = 0.34 * row.many + 0.36 * row.medium + 0.30 * row.few
        assert mean == pytest.approx(row.top1, abs=0.00015)
    # Not with the 35, 35, 30 of the published subset.
    assert any(abs(0.35 * r.many + 0.35 * r.medium + 0.30 * r.few - r.top1) > 0.0005 for r in rows)


def test_table_3_repeats_two_rows_of_table_2():
    data = "cifar100-lt/rho100"
    assert figure("Table 3", "(I) Baseline", data).top1 == figure("Table 2", "Baseline", data).top1
    assert figure("Table 3", "(V) CBN", data).top1 == figure("Table 2", "Baseline + CBN", data).top1


def test_what_the_text_says_of_the_competitors():
    competitors = {row.method for row in RESULTS if row.experiment is None}
    assert len(competitors) == 12

    def best(data):
        return max(row.top1 for row in RESULTS if row.data == data and row.experiment is None)

    assert best("cifar10-lt/rho100") == 0.828
    assert best("cifar100-lt/rho100") == 0.52
    assert best("imagenet-lt") == 0.57
    assert {row.method for row in RESULTS if row.data == "inaturalist2018"} >= {"PaCo", "ACE"}
    for data, ours in (("imagenet-lt", 0.574), ("places-lt", 0.427), ("inaturalist2018", 0.748)):
        (row,) = [row for row in RESULTS if row.data == data and row.experiment is not None]
        assert row.top1 == ours > best(data)


def test_every_figure_of_the_paper_belongs_to_a_recipe_and_back():
    named = {(row.source, row.experiment) for row in RESULTS if row.experiment is not None}
    listed = {
        (section.title, row.name) for section in SECTIONS for row in section.rows if section.title.startswith("Table")
    }
    assert named == listed
    assert {name for _, name in named} <= set(EXPERIMENTS)


def test_figures_are_shown_as_printed():
    assert [per_cent_as_printed(fraction) for fraction in (0.8498, 0.85, 0.887)] == ["84.98", "85.0", "88.7"]
