"""A real ``cbn-serve`` in a process of its own, on the loopback interface."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0  # loading and one trial run, on a busy machine
# What a shell runs in the background ignores Ctrl-C, and so would the server that tests send it to.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from serving.cli import main; main()"
)


class Server:
    """A started server: ``url``, ``client`` and the log lines so far."""

    def __init__(self, *arguments: object, environment: dict[str, str] | None = None, prelude: str = "pass") -> None:
        command = [sys.executable, "-c", f"{prelude}\n{PROGRAM}", *map(str, arguments)]
        if "--port" not in command:
            command += ["--port", "0"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CBN_")}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**clean, **(environment or {})}, stderr=subprocess.PIPE, text=True
        )
        self.log: list[dict[str, Any]] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url: str = self.wait_for_log("serving")["url"]
            self.client = httpx.Client(base_url=self.url, timeout=60.0, trust_env=False)
            if not any(entry["message"] == "Application startup complete." for entry in self.log):
                self.wait_for_log("Application startup complete.")
        except BaseException:
            self.stop()
            raise

    def wait_for_log(self, message: str) -> dict[str, Any]:
        """The next log line with this message that nobody has waited for yet."""
        while True:
            line = self._lines.get(timeout=START_SECONDS)
            if line is None:
                raise RuntimeError(f"the server ended with {self.process.wait()} before {message!r}")
            entry: dict[str, Any] = json.loads(line)
            self.log.append(entry)
            if entry["message"] == message:
                return entry

    def whole_log(self) -> list[dict[str, Any]]:
        """Stop the server; every line that it has logged."""
        self.stop()
        while (line := self._lines.get(timeout=START_SECONDS)) is not None:
            self.log.append(json.loads(line))
        return self.log

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def wait_for_the_last_process(self) -> None:
        """Every process of a server has its log open until it ends."""
        self._reader.join(timeout=START_SECONDS)
        if self._reader.is_alive():
            raise RuntimeError("a process of the server lives on")

    def stop(self) -> None:
        """End the process whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        if hasattr(self, "client"):
            self.client.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)
