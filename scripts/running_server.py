"""A real cbn-serve process for as long as a block lasts; needs the standard library only."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["running_server"]


@contextmanager
def running_server(command: list[str], log: Path) -> Iterator[str]:
    """Start ``command``, yield the server's address once it is ready, drain and stop it at the end."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield wait_until_ready(process, log)
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address that the server logged, once /v2/health/ready answers 200."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            url = json.loads(line).get("url") if line.startswith("{") else None
            if url and answers_ready(url):
                return str(url)
        time.sleep(0.1)
    sys.exit(f"The server did not become ready; its log is {log}.")


def answers_ready(url: str) -> bool:
    """One probe."""
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
