"""``cbn-export`` in this process, as from a shell."""

from __future__ import annotations

import sys

import pytest

from export.cli import main


def cbn_export(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of ``cbn-export *arguments``."""
    monkeypatch.setattr(sys, "argv", ["cbn-export", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)
