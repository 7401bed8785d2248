"""docs/operations.md: its table of settings is the settings, and its examples work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.config_file import read_config_file
from serving.settings import ServingSettings
from tests.serving.test_cli import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_table_of_settings_is_current() -> None:
    code = (
        "import settings_table as t, sys; sys.path.insert(0, '..'); sys.exit(t.PAGE.read_text() != t.page_with_table())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run: python scripts/settings_table.py --write\n{done.stderr}"


def test_every_setting_has_a_flag_of_its_name() -> None:
    help_text = run("--help", COLUMNS="200").stdout
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]*)", help_text)}
    assert set(ServingSettings.model_fields) - {"models"} <= flags
    others = {"config", "print_config", "help", "no_model_control", "no_access_log"}
    assert flags - set(ServingSettings.model_fields) == others


def test_every_setting_says_what_it_is() -> None:
    for name, field in ServingSettings.model_fields.items():
        assert field.description, name


def test_the_example_of_a_file_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "cbn.toml"
    path.write_text(example)
    settings = ServingSettings(**read_config_file(path, ServingSettings.model_fields))
    assert [model.name for model in settings.models] == ["birds", "flowers"]
    assert settings.cors_origins == ("https://app.example.org",)


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"--([a-z][a-z-]+)", PAGE)) - {"config", "print-config"}))
def test_flags_in_the_text_exist(flag: str) -> None:
    name = flag.removeprefix("no-").replace("-", "_")
    assert name in ServingSettings.model_fields
