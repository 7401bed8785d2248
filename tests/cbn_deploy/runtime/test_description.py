"""The model's description of itself: round trips, and every damaged form."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime.description import ModelDescription, Preprocessing, shot_group

DESCRIPTION = ModelDescription(
    class_names=("Häuser", 'a "quoted" name', "c"),
    class_counts=(500, 100, 19),
    preprocessing=Preprocessing(height=32, width=24, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    architecture="resnet32",
    components=4,
    training_prior=(0.8, 0.15, 0.05),
    source_sha256="ab" * 32,
    tool_versions={"torch": "2.13"},
    parity={"limits": {"logits": 1e-4}},
    temperature=1.75,
    energy_quantiles={"all": (-9.0, -8.0, -7.0, -6.5, -5.0, -4.0, -3.0, -1.5)},
    data_seed=3,
    occupancy={"stem": (0.25, 0.75), "block.1": (1.0,)},
)


def test_round_trips() -> None:
    assert ModelDescription.from_dict(DESCRIPTION.to_dict()) == DESCRIPTION
    assert ModelDescription.from_metadata(DESCRIPTION.to_metadata()) == DESCRIPTION
    assert all(key.startswith("cbn.") for key in DESCRIPTION.to_metadata())
    assert json.loads(DESCRIPTION.to_metadata()["cbn.class_names"])[0] == "Häuser"


@pytest.mark.parametrize("value", [None, "null"])
def test_a_model_that_was_never_calibrated_has_no_temperature(value: str | None) -> None:
    metadata = DESCRIPTION.to_metadata()
    del metadata["cbn.temperature"]  # as in files from before there was one
    if value is not None:
        metadata["cbn.temperature"] = value
    assert ModelDescription.from_metadata(metadata) == dataclasses.replace(DESCRIPTION, temperature=None)


def test_a_model_from_before_reference_measurements_has_none() -> None:
    metadata = DESCRIPTION.to_metadata()
    del metadata["cbn.energy_quantiles"], metadata["cbn.occupancy"]
    assert ModelDescription.from_metadata(metadata) == dataclasses.replace(
        DESCRIPTION, energy_quantiles={}, occupancy={}
    )


def test_a_model_from_before_the_data_seed_does_not_know_it() -> None:
    metadata = DESCRIPTION.to_metadata()
    del metadata["cbn.data_seed"]
    assert ModelDescription.from_metadata(metadata) == dataclasses.replace(DESCRIPTION, data_seed=None)


def test_foreign_metadata_is_ignored() -> None:
    metadata = {**DESCRIPTION.to_metadata(), "author": "someone"}
    assert ModelDescription.from_metadata(metadata) == DESCRIPTION


@pytest.mark.parametrize(("count", "group"), [(101, "many"), (100, "medium"), (20, "medium"), (19, "few"), (0, "few")])
def test_shot_groups(count: int, group: str) -> None:
    assert shot_group(count) == group


def test_shot_groups_of_a_model() -> None:
    assert DESCRIPTION.shot_groups == ("many", "medium", "few")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cbn.class_names", None, "incomplete or damaged"),
        ("cbn.class_names", "[", "damaged"),
        ("cbn.class_names", '["one"]', "one entry a class"),
        ("cbn.format_version", "2", "upgrade"),
        ("cbn.preprocessing", "{}", "incomplete or damaged"),
        ("cbn.preprocessing", "3", "incomplete or damaged"),
        ("cbn.preprocessing", '{"height": 32.0, "width": 24, "mean": [0, 0, 0], "std": [1, 1, 1]}', "as an integer"),
        ("cbn.preprocessing", '{"height": 32, "width": "24", "mean": [0, 0, 0], "std": [1, 1, 1]}', "as an integer"),
        ("cbn.training_prior", '"x"', "incomplete or damaged"),
        ("cbn.training_prior", "[0, 0, 0]", "training_prior must be"),
        ("cbn.training_prior", "[0.5, NaN, 0.5]", "training_prior must be"),
        ("cbn.training_prior", "[1.5, -0.5, 0]", "training_prior must be"),
        ("cbn.temperature", "0", "temperature must be"),
        ("cbn.temperature", "NaN", "temperature must be"),
        ("cbn.temperature", '"warm"', "incomplete or damaged"),
        ("cbn.energy_quantiles", '{"all": [1, 2]}', "ascending numbers"),
        ("cbn.energy_quantiles", '{"all": [1, 2, 3, 4, 5, 6, 8, 7]}', "ascending numbers"),
        ("cbn.energy_quantiles", '{"all": [1, 2, 3, 4, 5, 6, 7, Infinity]}', "ascending numbers"),
        ("cbn.occupancy", "[1]", "incomplete or damaged"),
        ("cbn.format_version", "Infinity", "incomplete or damaged"),
        ("cbn.class_counts", "[1e999, 1, 1]", "incomplete or damaged"),
        ("cbn.temperature", "1" + "0" * 400, "incomplete or damaged"),
        ("cbn.temperature", "1" * 5000, "metadata is damaged"),
        ("cbn.parity", "[" * 200_000, "metadata is damaged"),
        ("cbn.parity", '{"a":' + "[" * 900 + "]" * 900 + "}", "damaged"),
        ("cbn.components", str(2**63), "must be below"),
        ("cbn.class_counts", f"[1, {10**400}, 1]", "must be below"),
        ("cbn.class_names", r'["a", "\ud800", "c"]', "surrogates not allowed"),
        ("cbn.architecture", r'"\ud800"', "surrogates not allowed"),
        ("cbn.tool_versions", r'{"\ud800": "1"}', "surrogates not allowed"),
        ("cbn.parity", r'{"of": ["\udfff"]}', "surrogates not allowed"),
        ("cbn.tool_versions", '{"a":' * 200_000, "metadata is damaged"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damaged_metadata(key: str, value: str | None, message: str) -> None:
    metadata = DESCRIPTION.to_metadata()
    if value is None:
        del metadata[key]
    else:
        metadata[key] = value
    with pytest.raises(ModelFileError, match=message):
        ModelDescription.from_metadata(metadata)


def test_a_file_that_does_not_describe_itself() -> None:
    with pytest.raises(ModelFileError, match="does not describe itself"):
        ModelDescription.from_metadata({"author": "someone"})


def test_half_a_surrogate_pair_is_no_name() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        dataclasses.replace(DESCRIPTION, class_names=("a", "\ud83d", "c"))
    whole = dataclasses.replace(DESCRIPTION, class_names=("a", "\U0001f600", "c"))
    assert ModelDescription.from_metadata(whole.to_metadata()) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0},
        {"resize_shorter": 16},
        {"interpolation": "magic"},
        {"channel_order": "BGR"},
        {"std": (1.0, 0.0, 1.0)},
    ],
)
def test_impossible_preprocessing(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change)) if "std" not in change else "std"):
        dataclasses.replace(DESCRIPTION.preprocessing, **change)
