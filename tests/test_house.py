"""The house rules that a machine can check: arrows between packages, imports without torch, tolerances, help texts."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.reference.tolerances import TOLERANCES

ROOT = Path(__file__).parents[1]

BLOCKED = ("torch", "onnx", "onnxscript", "onnx_ir", "sklearn", "matplotlib", "torchmetrics", "tensorboard", "openvino")


# Of each command the defaults that are not those of its parameters, which Typer shows by itself.
TOLD_DEFAULTS = {
    "cbn_deploy.cli.train": {"out": "runs/RECIPE", "threads": "torch's choice"},
    "cbn_deploy.cli.evaluate": {"threads": "all"},
    "cbn_deploy.cli.predict": {},
    "export.cli": {"max-drop": "0.5", "repository-at": "/models", "prune-threshold": "0.000101, training's floor"},
    "export.bench.cli": {"runtimes": "all", "threads": "all CPUs"},
    "serving.cli": {},
}


def test_the_arrows_between_packages_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module", ["cbn_deploy", "cbn_deploy.runtime", "cbn_deploy.runtime.factory", "serving", "serving.app"]
)
def test_imports_without_torch(module: str) -> None:
    code = f"import sys\nsys.modules.update(dict.fromkeys({BLOCKED!r}))\nimport {module}\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", TOLD_DEFAULTS)
def test_help_shows_the_defaults(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes square brackets in a help text for markup and leaves them out."""
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(importlib.import_module(module).app, ["--help"])
    assert result.exit_code == 0, result.output
    for option, default in TOLD_DEFAULTS[module].items():
        assert re.search(rf"--{option} .*\[default: \({re.escape(default)}\)\]", result.output), result.output


def test_every_tolerance_has_a_reason() -> None:
    for name, row in TOLERANCES.items():
        assert len(row.reason) > 20, name
        assert row.rtol >= 0, name
        assert row.atol >= 0, name


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of a developer's machine in what is committed."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    needles = ("/" + "work/", "/" + "root/", "/" + "home/")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".json", ".html", ".txt", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not any(needle in text for needle in needles), name


def test_the_module_map_is_current() -> None:
    code = "import module_map as m, sys; sys.exit(m.PAGE.read_text() != m.page_with_map())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run: python scripts/module_map.py --write\n{done.stderr}"


def test_links_between_the_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
