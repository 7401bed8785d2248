"""The processes that train one run together, as ``torchrun`` starts them; a single process is a rank among one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from cbn_deploy.errors import CbnError, RankError, TrainingError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Ranks", "import_what_keeps_a_process_group", "joined_ranks", "launched_by_torchrun"]

T = TypeVar("T")
# While the first rank writes its report the others wait; a rank that dies is noticed at once, by its connections.
_TIMEOUT = timedelta(hours=2)
_FAILED = "cbn/failed"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together. Without others every method is trivial.

    Attributes:
        rank: 0 ... ``world_size`` - 1.
        world_size: number of processes, on all machines together.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Those of torch's default process group, or one alone where there is none."""
        if not distributed.is_available() or not distributed.is_initialized():
            return cls()
        return cls(rank=distributed.get_rank(), world_size=distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """``values`` added up over all ranks, the same on each; no gradient."""
        total = values.detach().clone()
        if self.world_size > 1:
            distributed.all_reduce(total)
        return total

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make()`` returns on the first rank, on every rank; nothing but the first rank calls it."""
        if self.world_size == 1:
            return make()
        made: list[Any] = [make() if self.is_first else None]
        distributed.broadcast_object_list(made, src=0)
        result: T = made[0]
        return result

    def to_first(self, value: T) -> list[T] | None:
        """On the first rank the values of all ranks in order, elsewhere ``None``."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_first else None
        distributed.gather_object(value, values, dst=0)
        return values


def launched_by_torchrun() -> bool:
    """Whether the environment names a rank and a place to meet the others, as ``torchrun`` sets it."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Inside the block this process is one of the ranks that ``torchrun`` has started; without torchrun, alone.

    Tensors travel by NCCL between CUDA devices (``device`` "cuda", or "auto" where there are any), and by gloo between
    processes on the CPU. A rank that fails ends them all:
    whichever fails first raises its own error, the others, which fail for want of it, :class:`RankError`.

    Raises:
        RankError: another rank has failed; it says why, so this one need not.
        TrainingError: the others cannot be reached.
    """
    if not launched_by_torchrun():
        yield Ranks()
        return
    store = _meet(device)
    try:
        yield Ranks.current()
    except Exception as error:
        outcome = _of_all(error, store)
        if outcome is error:
            raise
        raise outcome from error
    distributed.destroy_process_group()


def _meet(device: str) -> Store:
    backend = "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
    import_what_keeps_a_process_group()
    try:
        store, rank, world_size = next(iter(rendezvous("env://", timeout=timedelta(minutes=5))))
        distributed.init_process_group(backend, None, _TIMEOUT, world_size, rank, store)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise TrainingError(
            f"Rank {os.environ['RANK']} cannot meet the others at {address}; check that address and the network "
            f"interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME): {_first_line(error)}"
        ) from error
    found: Store = store
    return found


def import_what_keeps_a_process_group() -> None:
    """To be called before a process group is made, so that ``destroy_process_group`` ends gloo's threads.

    ``torch.distributed.nn``, which DistributedDataParallel imports, keeps the default group as the default of its
    arguments if there is one by then. Gloo's threads live as long as their group, and one that lets go of its last
    tensor while the interpreter shuts down ends a finished run with SIGABRT ("terminate called without an active
    exception"; pytorch/pytorch#190489).
    """
    importlib.import_module("torch.distributed.nn")


def _of_all(error: Exception, store: Store) -> Exception:
    """The error that this rank raises: its own if it failed first."""
    rank = str(distributed.get_rank())
    try:
        first = store.compare_set(_FAILED, "", rank).decode()
    except RuntimeError:  # the store went with the process that kept it
        first = "0"
    if first != rank:
        return RankError(f"Rank {first} of this run has failed.")
    if isinstance(error, CbnError) or not _is_lost_connection(error):
        return error
    return TrainingError(
        f"Another process of this run ended without a word (killed, or out of memory?); rank {rank} cannot go on "
        f"without it: start all of them again with --resume."
    )


def _is_lost_connection(error: Exception) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection" in str(error))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
