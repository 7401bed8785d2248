"""The Dockerfile keeps its promises (docs/docker.md), as far as reading it can tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_dockerfile_passes_its_own_check() -> None:
    command = [sys.executable, "scripts/check_dockerfile.py", "--lint-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 stages" in done.stdout
