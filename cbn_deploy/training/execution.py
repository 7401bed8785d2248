"""How a run is computed: on which device, in which memory layout and precision, compiled or not, by how many ranks."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cbn_deploy.errors import RuntimeUnavailableError
from cbn_deploy.training.config import Precision
from cbn_deploy.training.ranks import Ranks
from cbn_deploy.training.recipe import Recipe

__all__ = [
    "Execution",
    "check_recordable",
    "choose_device",
    "recording_obstacles",
    "training_network",
    "weights_cast_once",
]

# A step compiles four forms of a network (two paths, with and without gradient), and again for other batch sizes; all
# networks of a process count together. torch's default is 8, beyond which it stops compiling.
_RECOMPILE_LIMIT = 64


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What changes a run's speed, and of its result the rounding at most.

    Attributes:
        device: where the network is.
        workers: processes that prepare batches; 0 prepares them in this one.
        channels_last: convolutions see (B, H, W, C) in memory.
        compile: the network goes through ``torch.compile``.
        cuda_graphs: steps are recorded and replayed (:mod:`cbn_deploy.training.step_graphs`).
        device_views: views are made on the device (:mod:`cbn_deploy.data.device_loader`).
    """

    device: torch.device
    workers: int = 0
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    device_views: bool = False

    @property
    def steps_between_readings(self) -> int:
        """How often the running means are fetched: on a GPU each fetch waits until all that was asked of it is done."""
        return 20 if self.device.type == "cuda" else 1


def choose_device(name: str) -> torch.device:
    """The device of this process; of several CUDA devices the one that ``torchrun`` gives it (``LOCAL_RANK``).

    Args:
        name: "auto" (CUDA if there is one), "cpu" or "cuda".

    Raises:
        RuntimeUnavailableError: no CUDA device, or fewer than processes on this machine.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeUnavailableError("There is no CUDA device that this torch can use; train with --device cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= count:
        raise RuntimeUnavailableError(
            f"This machine has {count} CUDA device(s), fewer than processes; lower torchrun's --nproc-per-node."
        )
    # Fixed algorithms, so that the seed decides the result.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def check_recordable(execution: Execution, recipe: Recipe, ranks: Ranks) -> None:
    """A recorded step is a whole one, of one process, on a GPU, and nothing in it waits for the GPU.

    Raises:
        RuntimeUnavailableError: it is asked for where it cannot be.
    """
    if not execution.cuda_graphs:
        return
    if execution.device.type != "cuda":
        raise RuntimeUnavailableError("--cuda-graphs needs a CUDA device; leave it out to train on the CPU.")
    for name in recording_obstacles(recipe, ranks, compiled=execution.compile):
        raise RuntimeUnavailableError(f"--cuda-graphs does not go with {name}; leave one of the two out.")


def recording_obstacles(recipe: Recipe, ranks: Ranks, *, compiled: bool) -> list[str]:
    """What of a run keeps its steps from being recorded, in the user's words."""
    obstacles = {
        "accumulate": recipe.schedule.accumulate > 1,
        "several processes": ranks.world_size > 1,
        "--compile": compiled,
        "norm.initialization=first_batch": recipe.norm.initialization == "first_batch" and not recipe.is_batch_norm,
    }
    return [name for name, present in obstacles.items() if present]


def training_network(model: nn.Module, execution: Execution, precision: Precision, ranks: Ranks) -> nn.Module:
    """``model`` as the training step calls it: same parameters, same statistics, logits of its own dtype.

    Make it anew whenever other parameters than before are trained.

    Args:
        model: on its device; with ``channels_last`` its weights change their layout in place.
        execution: layout and compilation.
        precision: "bf16" runs convolutions and matrix products in bfloat16; densities, statistics, weights and
            gradients of weights stay float32.
        ranks: gradients are averaged over them (DistributedDataParallel).

    Raises:
        RuntimeUnavailableError: to be compiled for the CPU without a C++ compiler.
    """
    if execution.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it for tensors only
    network = _Computed(_compiled(model, execution.device) if execution.compile else model, execution, precision)
    if ranks.world_size == 1 or not any(parameter.requires_grad for parameter in model.parameters()):
        return network
    distributed = DistributedDataParallel(network, gradient_as_bucket_view=True)
    # Buffers are the same on all ranks as they are, and those of a mixture layer are new tensors after every pass. Said
    # here, because the constructor's argument for it has changed its name between torch's versions.
    distributed.broadcast_buffers = False
    return distributed


def _compiled(model: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise RuntimeUnavailableError(
            f"--compile needs a C++ compiler and {compiler} was not found; install it, set CXX, or leave --compile out."
        )
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model)
    return compiled


@contextmanager
def weights_cast_once(images: Tensor, precision: Precision) -> Iterator[None]:
    """Inside the block the passes of a network share the bfloat16 copies of its weights, and their gradients' sum.

    All of them with gradient, or all without: a copy made without one has none to hand on.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


class _Computed(nn.Module):
    """A network in the layout and precision of a run."""

    def __init__(self, network: Callable[[Tensor], Tensor], execution: Execution, precision: Precision) -> None:
        super().__init__()
        self._network = network
        self._format = torch.channels_last if execution.channels_last else torch.contiguous_format
        self._lower = precision == "bf16"

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self._format)
        # Left after every pass, unless :func:`weights_cast_once` is around several: the weights that autocast keeps in
        # bfloat16 must not outlive one without gradient.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._lower):
            logits = self._network(images)
        return logits.float() if self._lower else logits
