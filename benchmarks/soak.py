"""Whether the server holds: flat memory over 200,000 requests, reloads and kills under load, 100,000 fuzzed requests.

    python benchmarks/soak.py memory  --requests 200000 --minutes 30 --json soak.json
    python benchmarks/soak.py reloads --count 50        --minutes 9 --json soak.json
    python benchmarks/soak.py kills   --count 10        --minutes 9 --json soak.json
    python benchmarks/soak.py fuzz    --requests 100000 --minutes 9 --json soak.json     # again to go on

Each part starts a cbn-serve of its own on the loopback interface with a small exported model and asks it from this
process. Answers are held against logits computed beforehand. Every run ends by itself after --minutes at the latest and
says how far it came. `fuzz` goes on where the run before ended: seeds continue, counts add up.
Memory is that of one process, so `memory` is one run and begins anew each time: give it the minutes that it takes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from soak_faults import kills, reloads
from soak_fuzz import fuzz
from soak_memory import memory
from soak_server import Soak, prepare

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.machine import describe_machine

PARTS: dict[str, Callable[[Soak, int, float, dict[str, Any]], dict[str, Any]]] = {
    "memory": memory,
    "reloads": reloads,
    "kills": kills,
    "fuzz": fuzz,
}
FULL = {"memory": 200_000, "reloads": 50, "kills": 10, "fuzz": 100_000}
PACKAGES = ("fastapi", "uvicorn", "uvloop", "httptools", "onnxruntime", "numpy", "pillow", "prometheus-client")


def main() -> None:
    """Run one part and add what it found to the JSON."""
    arguments = _arguments()
    torch.set_num_threads(1)
    everything = _read(arguments.json)
    before = everything.get(arguments.part, {}) if arguments.part == "fuzz" else {}
    with tempfile.TemporaryDirectory() as folder:
        soak = prepare(Path(folder), arguments.model)
        started = time.monotonic()
        found = PARTS[arguments.part](soak, arguments.count, started + 60 * arguments.minutes, before)
    seconds = before.get("seconds", 0.0) + time.monotonic() - started
    result = {**found, "seconds": round(seconds, 1), "machine": describe_machine(PACKAGES)}
    print(json.dumps({arguments.part: {**found, "seconds": result["seconds"]}}, indent=1))
    if arguments.json is not None:
        atomic_write_bytes(arguments.json, f"{json.dumps({**everything, arguments.part: result}, indent=1)}\n".encode())
    raise SystemExit(0 if found["good"] else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--count", "--requests", type=int, help="requests, reloads or kills; default: as promised")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which the run ends wherever it is")
    parser.add_argument("--model", type=Path, help="an exported model; default: a ResNet-20 is trained for a minute")
    parser.add_argument("--json", type=Path, help="file to read, add to and write")
    arguments = parser.parse_args()
    arguments.count = arguments.count or FULL[arguments.part]
    return arguments


def _read(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


if __name__ == "__main__":
    main()
