"""A server in processes of its own: started, watched through /proc, paused, killed. Linux only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["ServerProcess", "free_port"]

_START_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


class ServerProcess:
    """A command that serves HTTP on ``port``, with all processes that it starts.

    Args:
        command: what to run.
        port: where it will listen.
        log: file that its output is appended to.
        ready_path: a GET of this answers 200 once it is ready.
        environment: variables to set.
        folder: working directory.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        log: Path,
        ready_path: str,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.port, self._log = port, log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                start_new_session=True,
            )
        self.pid = self._process.pid
        try:
            self._wait_until_ready(ready_path)
        except BaseException:
            self.kill()
            raise

    def pause(self) -> None:
        """Stop all its processes, so that they cost nothing while another is measured."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        for pid in {self.pid, *self._members()}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def terminate(self, seconds: float = 30.0) -> int:
        """SIGTERM to the first process, and its exit code; SIGKILL if it has not ended in time."""
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def cpu_seconds(self) -> float:
        """Processor time so far of all its processes."""
        return sum(sum(map(int, _stat(pid)[11:13])) for pid in self._members()) / _TICKS

    def resident_bytes(self) -> int:
        """Resident memory of the first process."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE

    def open_files(self) -> int:
        """File descriptors of the first process."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        """Threads of the first process."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def _members(self) -> list[int]:
        """The processes of its session."""
        members = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if int(_stat(int(entry.name))[3]) == self.pid:
                        members.append(int(entry.name))
                except OSError:  # it has just ended
                    continue
        return members

    def _wait_until_ready(self, path: str) -> None:
        deadline = time.monotonic() + _START_S
        while not self._is_ready(path):
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with {self._process.returncode}: {self._last_lines()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not ready after {_START_S:g} seconds: {self._last_lines()}")
            time.sleep(0.05)

    def _is_ready(self, path: str) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                return connection.recv(64).split()[1:2] == [b"200"]
        except OSError:
            return False

    def _last_lines(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").strip().splitlines()[-5:])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the command's name: 0 is the state, 3 the session, 11 and 12 the times."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
