"""Run a function in several real processes that are the ranks of one gloo process group on this machine."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from cbn_deploy.training.ranks import import_what_keeps_a_process_group


def run_on_ranks(function: Callable[..., None], world_size: int, folder: Path, *arguments: Any) -> None:
    """``function(rank, world_size, folder, *arguments)`` on every rank; what it has to say it writes into ``folder``.

    Raises:
        Exception: what a rank raised.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    folder.mkdir(parents=True, exist_ok=True)
    multiprocessing.spawn(_rank, (function, world_size, folder, arguments), nprocs=world_size)


def _rank(rank: int, function: Callable[..., None], world_size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    import_what_keeps_a_process_group()
    distributed.init_process_group("gloo", f"file://{folder / 'rendezvous'}", timedelta(seconds=120), world_size, rank)
    try:
        function(rank, world_size, folder, *arguments)
    finally:
        distributed.destroy_process_group()
