"""What compound batch norm costs in training on the CPU: a step of ResNet-32 beside the same step of its twin.

Run it with ``python benchmarks/training_step.py [--threads 1 2] [--rounds R] [--batch-size B] [--options] [--json
FILE]``. A step is forward, loss, backward and SGD. The candidates take turns, in an order that is shuffled in every
round; given are the median time and the median of the quotients by the batch-norm twin's time in the same round, with
their 10-90 % interval. The dual-path step is 4 forwards and 2 backwards; its floor is batch norm with as many passes,
and its quotient by that floor is given as well. ``--options`` adds the dual-path step in bfloat16, in channels last and
compiled. Before anything is timed, the native and the portable step must give the same loss and gradients. Peak memory
is that of a fresh process for each candidate: how far its resident set rises in two steps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.benchmark import paired_ratio, summarize
from cbn_deploy.data import TrainingBatch
from cbn_deploy.machine import describe_machine, is_busy
from cbn_deploy.models import create_model
from cbn_deploy.native_library import native_library
from cbn_deploy.norm import split_path
from cbn_deploy.training import Recipe, apply_settings, get_recipe
from cbn_deploy.training.classification import classification_loss
from cbn_deploy.training.config import Precision
from cbn_deploy.training.execution import Execution, training_network
from cbn_deploy.training.ranks import Ranks
from cbn_deploy.training.step import step_losses

REFERENCE = "batch norm"
PORTABLE = "compound path, portable"
FLOOR, DUAL_PATH = "batch norm, as many passes", "dual-path step"
CPU = torch.device("cpu")
CLASSES = 10
Step = Callable[[], Tensor]
# How a candidate's loss comes about; the network is the recipe's, or its batch-norm twin.
Loss = Callable[[nn.Module, TrainingBatch, Recipe], Tensor]


def main() -> None:
    """Check, measure and print; with ``--json`` also write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--options", action="store_true", help="also bfloat16, channels last and torch.compile")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = [*CANDIDATES, *(OPTIONS if arguments.options else ())]
    machine = describe_machine(["torch", "numpy"])
    library = native_library()
    instruction_set = None if library is None else library.instruction_set
    print(f"{machine['cpu']}, torch {torch.__version__}, native kernels: {instruction_set or 'none'}")
    if is_busy(machine):
        print(f"The machine is busy (load {machine['load_average']:.1f}): read the ratios, not the times.")
    _check_portable_agrees(arguments.batch_size)
    memory = _peak_memory(names, arguments.batch_size)
    rows = [
        row for threads in arguments.threads for row in _measure(names, threads, arguments.rounds, arguments.batch_size)
    ]
    for row in rows:
        row["peak_memory_mb"] = memory[row["name"]]
    _print(rows)
    if arguments.json is not None:
        settings = {"instruction_set": instruction_set, "batch_size": arguments.batch_size, "rounds": arguments.rounds}
        content = json.dumps({"machine": machine, **settings, "rows": rows}, indent=1) + "\n"
        atomic_write_bytes(arguments.json, content.encode())


def _one_path(model: nn.Module, batch: TrainingBatch, recipe: Recipe) -> Tensor:
    del recipe
    return F.cross_entropy(model(batch.strong), batch.labels)


def _split_path(model: nn.Module, batch: TrainingBatch, recipe: Recipe) -> Tensor:
    with split_path(model, batch.labels):
        return _one_path(model, batch, recipe)


def _full_step(model: nn.Module, batch: TrainingBatch, recipe: Recipe) -> Tensor:
    """Weak and strong view, both paths, all losses: the recipe's own step."""
    classify = classification_loss(recipe.loss, [100] * CLASSES)
    return step_losses(model, batch, recipe, classify).total


def _same_passes(model: nn.Module, batch: TrainingBatch, recipe: Recipe) -> Tensor:
    """As many passes through the network as the recipe's step, two of them with gradient."""
    with torch.no_grad():
        weak = [model(batch.weak) for _ in range(2)]
    strong = [_one_path(model, batch, recipe) for _ in range(2)]
    return strong[0] + strong[1] + 0.0 * weak[0].sum()


class Candidate(NamedTuple):
    """Whether the network is the twin, its loss, how often it goes forwards and back, and how it is computed."""

    twin: bool
    loss: Loss
    forwards: int = 1
    backwards: int = 1
    execution: Execution = Execution(device=CPU)
    precision: Precision = "fp32"


CANDIDATES = {
    REFERENCE: Candidate(True, _one_path),
    "compound path": Candidate(False, _one_path),
    PORTABLE: Candidate(False, _one_path),
    "split path": Candidate(False, _split_path),
    DUAL_PATH: Candidate(False, _full_step, 4, 2),
    FLOOR: Candidate(True, _same_passes, 4, 2),
}
OPTIONS = {
    f"{DUAL_PATH}, bf16": Candidate(False, _full_step, 4, 2, precision="bf16"),
    f"{DUAL_PATH}, channels last": Candidate(False, _full_step, 4, 2, Execution(device=CPU, channels_last=True)),
    f"{DUAL_PATH}, compiled": Candidate(False, _full_step, 4, 2, Execution(device=CPU, compile=True)),
}


def _recipe(twin: bool) -> Recipe:
    return apply_settings(
        get_recipe("cifar10-lt/rho100/cbn-sbn-dpl"), ["model=resnet32-bn"] if twin else ["model=resnet32"]
    )


def _batch(size: int) -> TrainingBatch:
    generator = torch.Generator().manual_seed(0)
    strong, weak = (torch.randn(size, 3, 32, 32, generator=generator) for _ in range(2))
    return TrainingBatch(strong=strong, weak=weak, labels=torch.randint(CLASSES, (size,), generator=generator))


def _loss(name: str, batch_size: int) -> tuple[nn.Module, Step]:
    candidate = (CANDIDATES | OPTIONS)[name]
    loss, recipe = candidate.loss, _recipe(candidate.twin)
    torch.manual_seed(0)
    model = create_model(recipe.architecture(CLASSES), [100] * CLASSES).train()
    network = training_network(model, candidate.execution, candidate.precision, Ranks())
    batch = _batch(batch_size)

    def run() -> Tensor:
        if name == PORTABLE:
            os.environ["CBN_DISABLE_NATIVE"] = "1"
        return loss(network, batch, recipe)

    return model, run


def _step(name: str, batch_size: int) -> Step:
    model, loss = _loss(name, batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        try:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
        finally:
            os.environ.pop("CBN_DISABLE_NATIVE", None)
        return value.detach()

    return step


def _check_portable_agrees(batch_size: int) -> None:
    outcomes = []
    for name in ("compound path", PORTABLE):
        model, loss = _loss(name, batch_size)
        value = loss()
        value.backward()
        os.environ.pop("CBN_DISABLE_NATIVE", None)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        outcomes.append((value.item(), gradient))
    difference = float((outcomes[0][1] - outcomes[1][1]).norm() / outcomes[1][1].norm())
    print(f"native and portable: loss {outcomes[0][0]:.6f} and {outcomes[1][0]:.6f}, gradients {difference:.1e} apart")
    # A ReLU whose input is 0 but for rounding changes some gradients by a thousandth.
    if not (abs(outcomes[0][0] - outcomes[1][0]) < 1e-4 and difference < 1e-2):
        raise SystemExit("The native step does not compute what the portable one does.")


def _measure(names: Sequence[str], threads: int, rounds: int, batch_size: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    steps = {name: _step(name, batch_size) for name in names}
    calls: dict[str, list[list[int]]] = {name: [] for name in steps}
    shuffled = random.Random(0)
    for _ in range(2):
        for step in steps.values():
            step()
    for _ in range(rounds):
        for name in shuffled.sample(sorted(steps), len(steps)):
            start = time.perf_counter_ns()
            steps[name]()
            calls[name].append([time.perf_counter_ns() - start])
    timed = {name: np.array(values, dtype=np.int64) for name, values in calls.items()}
    return [_row(name, threads, batch_size, timed) for name in steps]


def _row(name: str, threads: int, batch_size: int, timed: dict[str, Any]) -> dict[str, Any]:
    candidate = (CANDIDATES | OPTIONS)[name]
    row = {
        "name": name,
        "threads": threads,
        "forwards": candidate.forwards,
        "backwards": candidate.backwards,
        "median_ms": summarize(timed[name], batch_size).median,
        "ratio": _ratio(timed[name], timed[REFERENCE]),
    }
    if candidate.loss is _full_step:
        row["ratio_to_floor"] = _ratio(timed[name], timed[FLOOR])
    return row


def _ratio(ours: Any, theirs: Any) -> dict[str, float]:
    ratio = paired_ratio(ours, theirs)
    return {"median": ratio.median, "p10": ratio.p10, "p90": ratio.p90}


def _peak_memory(names: Sequence[str], batch_size: int) -> dict[str, float]:
    """Megabytes (2**20 bytes) by candidate, on Linux; each in a process of its own: a peak does not go down again."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in names:
        with context.Pool(1) as pool:
            peaks[name] = pool.apply(_rise_of_the_resident_set, (name, batch_size))
    return peaks


def _rise_of_the_resident_set(name: str, batch_size: int) -> float:
    step = _step(name, batch_size)
    _step(name, 2)()  # what the first call ever allocates for itself
    before = _peak_resident_set()
    for _ in range(2):
        step()
    return _peak_resident_set() - before


def _peak_resident_set() -> float:
    # Not getrusage, whose peak a child inherits from its parent.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) / 1024.0


def _print(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        ratio, floor = row["ratio"], row.get("ratio_to_floor")
        line = f"{row['threads']} threads  {row['name']:29s} {row['forwards']}F {row['backwards']}B "
        line += f"{row['median_ms']:8.1f} ms  {ratio['median']:5.2f} times batch norm "
        line += f"({ratio['p10']:.2f}-{ratio['p90']:.2f})  peak {row['peak_memory_mb']:6.0f} MB"
        if floor:
            line += f"  {floor['median']:.2f} times its floor ({floor['p10']:.2f}-{floor['p90']:.2f})"
        print(line)


if __name__ == "__main__":
    main()
