"""What a training step's time on the GPU is made of, recorded steps, and several networks at once.

    python benchmarks/gpu_profile.py | tee profile.txt

ResNet-32, batch 128, random images, three rows of the paper's Table 2 (:mod:`gpu.recorded`): for each the kernels of a
step by their share of its time (torch's profiler, steps as they are), the milliseconds of a recorded step, and of a
round in which each of several networks takes a recorded step on a stream of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu.recorded import ROWS, Training, recipe_of, seconds_a_step

NETWORKS_AT_ONCE = (("bn", "cbn", "dual path"), ("dual path",) * 3, ("bn", "cbn", "dual path") * 3)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--channels-first", action="store_true")
    parser.add_argument("--kernels", type=int, default=28, help="how many to show")
    arguments = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    torch.backends.cudnn.deterministic = True  # as in a training

    def training(name: str, *, recorded: bool) -> Training:
        recipe = recipe_of(ROWS[name], arguments.precision)
        made = Training(recipe, recorded=recorded, channels_last=not arguments.channels_first)
        for _ in range(5):
            made.step()
        return made

    for name in ROWS:
        print_profile(name, training(name, recorded=False), arguments.kernels)
        print(
            f"{name}: a recorded step takes {1e3 * seconds_a_step(training(name, recorded=True), 60):.3f} ms",
            flush=True,
        )
    for names in NETWORKS_AT_ONCE:
        print_round(names, lambda name: training(name, recorded=True))


def print_profile(name: str, training: Training, shown: int) -> None:
    """Kernels of a step, those that take longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        training.step()
        torch.cuda.synchronize()
    kernels = [event for event in found.key_averages() if event.self_device_time_total > 0]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    total, launches = sum(k.self_device_time_total for k in kernels), sum(k.count for k in kernels)
    print(f"\n{name}: {launches} kernels, {total / 1e3:.3f} ms")
    for kernel in kernels[:shown]:
        print(f"{kernel.self_device_time_total:9.1f} us {kernel.count:6d} x  {kernel.key[:110]}")


def print_round(names: Sequence[str], make: Callable[[str], Training], rounds: int = 40) -> None:
    """Every network takes a step a round; the host's share is what the launches take."""
    trainings = [(make(name), torch.cuda.Stream()) for name in names]

    def enqueue(count: int) -> None:
        for _ in range(count):
            for training, stream in trainings:
                with torch.cuda.stream(stream):
                    training.step()

    enqueue(5)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    enqueue(rounds)
    enqueued = time.perf_counter() - begin
    torch.cuda.synchronize()
    taken = time.perf_counter() - begin
    print(
        f"{', '.join(names)}: {1e3 * taken / rounds:.2f} ms a round, the host {1e3 * enqueued / rounds:.2f}", flush=True
    )


if __name__ == "__main__":
    main()
