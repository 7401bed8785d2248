"""A real Ray in a process of its own, of which nothing is left afterwards."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (pip install 'cbn-deploy[scale]')"
)


def run_ray(driver: str, *arguments: object, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """Run ``driver`` with a folder for Ray's sockets (whose paths must be short), and wait until its Ray is gone."""
    temporary = tempfile.mkdtemp(prefix="ray")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CBN_", "RAY_"))}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", driver, *map(str, arguments), temporary],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        deadline = time.monotonic() + 60
        while _processes_of(temporary) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert _processes_of(temporary) == []
        return done
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _processes_of(folder: str) -> list[str]:
    """Command lines of the processes that were told of ``folder``."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in line:
            lines.append(line)
    return lines
