"""What all command lines share: one sentence and exit code 2 for every expected error."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from cbn_deploy.errors import CbnError

__all__ = ["run_cli"]


def run_cli(app: typer.Typer) -> None:
    """Run a Typer application: a :class:`CbnError` is one sentence on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        app()
    except CbnError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] {_escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
