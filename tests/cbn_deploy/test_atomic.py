"""Files appear whole or not at all; a full disk and an unwritable folder are one sentence."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cbn_deploy.atomic import atomic_path, atomic_write_bytes, check_writable
from cbn_deploy.errors import OutputError


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    atomic_write_bytes(path, b"one")
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_that_is_replaced_hands_its_permissions_on(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_bytes(path, b"one")
    path.chmod(0o600)
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_bytes({}["half a file"])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left on device; free space"), atomic_path(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import os, signal, pathlib, sys\n"
        "from cbn_deploy.atomic import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as t:\n"
        "    t.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "made" / "here")
    assert list((tmp_path / "made" / "here").iterdir()) == []
    with pytest.raises(OutputError, match="MB are needed"):
        check_writable(tmp_path, needed_bytes=10**18)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another folder"):
        check_writable(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_folder_that_takes_nothing_has_remedies_that_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    remedy = f"{os.strerror(number)}; free space, make the folder writable or choose another folder"
    with pytest.raises(OutputError, match=remedy):
        check_writable(tmp_path)
    with pytest.raises(OutputError, match=remedy):
        atomic_write_bytes(tmp_path / "file", b"")
