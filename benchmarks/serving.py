"""How much of what the machine can do is left over HTTP, and how long an answer takes.

    python benchmarks/serving.py --rivals-python OTHER/bin/python [--smoke]

Serves one exported ResNet-32 with Gaussian mixtures on the loopback interface and drives it from this process with a
client of its own that takes some 50 microseconds a request (benchmarks/load_client.py):

    cbn-serve             as it is started by a user, with --threads
    cbn-serve --workers   likewise with a process for each of the threads, so --threads 1 in each
    FastAPI, onnxruntime  a handler as usually written, one image at a time on the event loop, with onnxruntime's
                          defaults: threads that spin, and the op's standard-ops body, not cbn-deploy's kernels
    FastAPI, async        the same handler with cbn-deploy's own sessions: kernels, no spinning, --threads
    FastAPI, threads      that without `async`: a thread a request
    LitServe              with those sessions, batches of up to 32 and a timeout of 2 ms
    MLServer              with those sessions, adaptive batching likewise, and the file as base64 in JSON
    floor                 decoding + preprocessing + inference in batches of 32, in one process without HTTP

So the first handler is what there was before this project, and against the others only the serving differs.

LitServe and MLServer want other versions of the packages, so they run in an environment of their own:

    python -m venv OTHER && OTHER/bin/pip install litserve mlserver 'uvloop<0.22' onnxruntime onnx

In every round the candidates run one after another in a shuffled order, those that wait are stopped by SIGSTOP, and
ratios are taken within rounds. The client shares the processors with the server: its share is reported beside. Then
requests arrive at half the rate that each cbn-serve answered at saturation, evenly and as independent clients send them
(Poisson), and their time counts from the moment at which they were due. Where other programs take processor time too,
read the processor time of a request: images a second at saturation are CPUs over the sum of server's and client's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load_client import Call, Load, closed_loop, open_loop
from server_process import ServerProcess
from serving_candidates import OURS, RIVALS, WORKERS, UnavailableError, start_cbn_serve, start_rival
from serving_floor import Floor
from serving_plot import save_plot
from serving_workload import ImageFile, digits, export_model, photographs, with_logits

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.machine import describe_machine, is_busy
from cbn_deploy.runtime.factory import available_cpus, open_session

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
PLAIN = ("FastAPI, onnxruntime", "FastAPI, async", "FastAPI, threads")
WARM_UP_S = 0.5
PACKAGES = ("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "onnxruntime", "numpy", "pillow", "orjson")
FILES = {"photographs": photographs, "digits": digits}


@dataclass(frozen=True)
class Candidate:
    """A running server, and the requests that it understands."""

    name: str
    server: ServerProcess
    calls: list[Call]


def main() -> None:
    """Measure, print a table; with ``--json`` and ``--plot`` write what was measured."""
    arguments = _arguments()
    torch.set_num_threads(1)
    machine = describe_machine(PACKAGES)
    print(f"{machine['cpu']}, {machine['available_cpus']} CPUs, {arguments.threads} threads")
    if is_busy(machine):
        print(f"The machine is busy (load {machine['load_average']:.1f}): read the ratios, not the times.")
    result: dict[str, Any] = {
        "machine": machine,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "seconds_a_point": arguments.seconds,
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = arguments.model or export_model(folder)
        result["model"] = open_session(model, threads=1).description.architecture
        for workload in arguments.workloads:
            result[workload] = _workload(workload, model, folder, arguments)
    if arguments.json is not None:
        atomic_write_bytes(arguments.json, f"{json.dumps(result, indent=1)}\n".encode())
    if arguments.plot is not None:
        save_plot(result, arguments.workloads, arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an exported model; default: a ResNet-32 is trained for a minute")
    parser.add_argument("--workloads", nargs="+", choices=FILES, default=list(FILES), help="what is sent")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of inference, and of decoding")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured")
    parser.add_argument("--seconds", type=float, default=1.2, help="for every point of a curve")
    parser.add_argument("--latency-seconds", type=float, default=6.0, help="for every run at half load")
    parser.add_argument("--only", nargs="+", default=[*OURS, *RIVALS], metavar="NAME", help="servers to measure")
    parser.add_argument("--rivals-python", type=Path, help="interpreter that has litserve and mlserver")
    parser.add_argument("--smoke", action="store_true", help="everything once and briefly: does it work?")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--plot", type=Path, help="picture to write")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds, arguments.seconds, arguments.latency_seconds = 1, 0.2, 0.5
    return arguments


def _workload(name: str, model: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    print(f"\n## {name}\n")
    images = with_logits(FILES[name](), model)
    floor = Floor(model, [image.content for image in images], arguments.threads)
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        candidates = _start(model, images, folder, arguments, absent, stack)
        points, floors = _curves(candidates, floor, arguments)
        table = _summary(points, floors, [candidate.name for candidate in candidates])
        latency = {own.name: _half_load(own, table, arguments) for own in candidates if own.name in OURS}
    result = {
        "bytes_an_image": int(np.mean([len(image.content) for image in images])),
        "floor": {
            "images_per_second": floors,
            "median": float(np.median(floors)),
            "cpu_ms": float(np.median(floor.cpu_ms)),
        },
        "absent": absent,
        "curves": table,
        "half_load": latency,
        "targets": {name: _targets(name, points, floors, measured) for name, measured in latency.items()},
    }
    _print(result)
    return result


def _start(
    model: Path,
    images: list[ImageFile],
    folder: Path,
    arguments: argparse.Namespace,
    absent: dict[str, str],
    stack: ExitStack,
) -> list[Candidate]:
    candidates = []
    for name in arguments.only:
        try:
            if name in OURS:
                workers = arguments.threads if name == WORKERS else 1
                server, calls = start_cbn_serve(model, images, arguments.threads, folder, workers)
            else:
                server, calls = start_rival(name, model, images, arguments.threads, folder, arguments.rivals_python)
        except UnavailableError as error:
            absent[name] = str(error)
            print(f"{name}: {error}")
            continue
        stack.callback(server.kill)
        closed_loop(server.port, calls, 4, WARM_UP_S)
        server.pause()
        candidates.append(Candidate(name, server, calls))
    return candidates


def _curves(
    candidates: list[Candidate], floor: Floor, arguments: argparse.Namespace
) -> tuple[dict[tuple[str, int], list[dict[str, float]]], list[float]]:
    """(name, concurrency) -> a measurement a round; and the floor, images a second, a round."""
    points: dict[tuple[str, int], list[dict[str, float]]] = {}
    floors = []
    order = random.Random(0)
    for _ in range(arguments.rounds):
        floors.append(floor.images_per_second(max(arguments.seconds, 1.0)))
        for candidate in order.sample(candidates, len(candidates)):
            candidate.server.resume()
            closed_loop(candidate.server.port, candidate.calls, 8, WARM_UP_S)
            for concurrency in CONCURRENCIES:
                measured = _measure(candidate, concurrency, arguments.seconds)
                points.setdefault((candidate.name, concurrency), []).append(measured)
            candidate.server.pause()
    return points, floors


def _measure(candidate: Candidate, concurrency: int, seconds: float) -> dict[str, float]:
    before = candidate.server.cpu_seconds()
    load = closed_loop(candidate.server.port, candidate.calls, concurrency, seconds)
    _require_right(candidate.name, load)
    return {
        "images_per_second": load.throughput,
        "p50_ms": load.percentile_ms(50),
        "p99_ms": load.percentile_ms(99),
        "server_cpu_ms": (candidate.server.cpu_seconds() - before) / len(load.latencies_s) * 1000,
        "client_cpu_share": load.client_cpu_s / load.seconds / available_cpus(),
    }


def _require_right(name: str, load: Load) -> None:
    if load.wrong or load.lost or set(load.statuses) != {200}:
        raise SystemExit(f"{name}: {load.wrong} wrong answers, {load.lost} lost, statuses {dict(load.statuses)}")


def _summary(
    points: dict[tuple[str, int], list[dict[str, float]]], floors: list[float], names: list[str]
) -> list[dict[str, Any]]:
    """A row a server and concurrency: medians over the rounds."""
    rows = []
    for name in names:
        for concurrency in CONCURRENCIES:
            measured = points[name, concurrency]
            row: dict[str, Any] = {"name": name, "concurrency": concurrency}
            row |= {key: float(np.median([point[key] for point in measured])) for key in measured[0]}
            row["of_floor"] = float(
                np.median([point["images_per_second"] / floor for point, floor in zip(measured, floors, strict=True)])
            )
            rows.append(row)
    return rows


def _half_load(ours: Candidate, table: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Latency of a cbn-serve when nothing else happens, and with half of what it can do."""
    saturation = max(row["images_per_second"] for row in table if row["name"] == ours.name)
    rate = saturation / 2
    ours.server.resume()
    runs: dict[str, list[Load]] = {"unloaded": [], "even": [], "poisson": []}
    port, calls, seconds = ours.server.port, ours.calls, arguments.latency_seconds
    for _ in range(arguments.rounds):
        runs["unloaded"].append(closed_loop(port, calls, 1, seconds / 2))
        runs["even"].append(open_loop(port, calls, rate, seconds))
        runs["poisson"].append(open_loop(port, calls, rate, seconds, poisson=True))
    ours.server.pause()
    for loads in runs.values():
        for load in loads:
            _require_right(ours.name, load)
    return {
        "requests_per_second": rate,
        **{
            name: {
                f"p{percent}_ms": float(np.median([load.percentile_ms(percent) for load in loads]))
                for percent in (50, 99)
            }
            for name, loads in runs.items()
        },
    }


def _targets(
    ours: str, points: dict[tuple[str, int], list[dict[str, float]]], floors: list[float], latency: dict[str, Any]
) -> dict[str, float]:
    """What is promised, as ratios within rounds: at least 0.85, at least 3, at most 2."""
    rounds = range(len(floors))

    def throughput(name: str, concurrency: int, number: int) -> float:
        return points[name, concurrency][number]["images_per_second"]

    best = [max(throughput(ours, concurrency, number) for concurrency in CONCURRENCIES) for number in rounds]
    targets = {"saturation / floor": float(np.median(np.divide(best, floors)))}
    for name in PLAIN:
        if (name, 32) in points:
            ratios = [throughput(ours, 32, number) / throughput(name, 32, number) for number in rounds]
            targets[f"{ours} / {name}, concurrency 32"] = float(np.median(ratios))
    for arrival in ("even", "poisson"):
        targets[f"p99 at half load, {arrival} / p99 unloaded"] = (
            latency[arrival]["p99_ms"] / latency["unloaded"]["p99_ms"]
        )
    return targets


def _print(result: dict[str, Any]) -> None:
    print(f"Floor: {result['floor']['median']:.0f} images/s, {result['floor']['cpu_ms']:.2f} ms of CPU an image\n")
    print("| server | concurrency | images/s | of floor | p50 ms | p99 ms | server CPU ms | client CPU |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in result["curves"]:
        print(
            f"| {row['name']} | {row['concurrency']} | {row['images_per_second']:.0f} | {row['of_floor']:.2f} "
            f"| {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {row['server_cpu_ms']:.2f} "
            f"| {row['client_cpu_share']:.1%} |"
        )
    print()
    for name, targets in result["targets"].items():
        for what, ratio in targets.items():
            print(f"{name}: {what}: {ratio:.2f}")
        print(json.dumps(result["half_load"][name]), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
