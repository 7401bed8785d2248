"""Times of device work: CUDA events around graph replays, candidates in turn, medians over the rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.gpu.results import Clock

Work = Callable[[], object]
# More than any GPU's L2 cache: calls go round inputs that together are larger.
COLD_BYTES = 256 * 2**20


def input_sets(one_set: int) -> int:
    """How many inputs of ``one_set`` bytes to go round."""
    return max(1, min(16, -(-COLD_BYTES // one_set)))


def captured(calls: Sequence[Work]) -> Work:
    """A CUDA graph of all ``calls``, after a warm-up; on a CPU the calls themselves."""
    if not torch.cuda.is_available():
        return lambda: [call() for call in calls]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]  # results stay alive, so that none is written over the other's memory
    del kept
    return graph.replay


def graph_medians(works: Mapping[str, Work], clock: Clock) -> dict[str, float] | str:
    """As :func:`medians`, every work a CUDA graph; or why one cannot be captured."""
    try:
        graphs = {name: captured([work]) for name, work in works.items()}
    except RuntimeError as error:
        torch.cuda.synchronize()
        return str(error).splitlines()[0]
    return medians(graphs, clock, rounds=9, least_ms=5.0)


def medians(
    candidates: Mapping[str, Work], clock: Clock, *, rounds: int = 15, least_ms: float = 2.0
) -> dict[str, float]:
    """Milliseconds a call of every candidate: each has one turn a round, and a turn lasts ``least_ms`` or more."""
    if not torch.cuda.is_available():
        rounds = 2
    repeats = {}
    for name, work in candidates.items():
        work()
        repeats[name] = max(1, min(200, int(least_ms / max(_elapsed(work, 1), 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds):
        names = list(candidates)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(_elapsed(candidates[name], repeats[name]) / repeats[name])
        if clock.over() and turn >= 2:
            break
    return {name: statistics.median(values) for name, values in times.items()}


def _elapsed(work: Work, repeats: int) -> float:
    if not torch.cuda.is_available():
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        return 1e3 * (time.perf_counter() - begin)
    begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin_event.record()
    for _ in range(repeats):
        work()
    end_event.record()
    end_event.synchronize()
    return float(begin_event.elapsed_time(end_event))
