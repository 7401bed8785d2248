"""The house rules that a machine can check: arrows between packages, imports without torch, the tolerance table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference.tolerances import TOLERANCES

ROOT = Path(__file__).parents[1]

BLOCKED = ("torch", "onnx", "onnxscript", "onnx_ir", "sklearn", "matplotlib", "torchmetrics", "tensorboard", "openvino")


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
