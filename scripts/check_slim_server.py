"""Prove that a server needs no torch: build the wheel, install it with [serve] alone, classify over HTTP.

Runs with the test environment's Python (which makes the model); the server runs in a fresh environment of each
interpreter named, by default this one's.

    python scripts/check_slim_server.py [python3.10 python3.12 python3.13]
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from running_server import running_server

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ABSENT = ("torch", "onnxscript", "sklearn", "matplotlib")
QUIET = ("--quiet", "--disable-pip-version-check")


def main() -> None:
    """Exit code 0 and one line an interpreter if a torch-free installation classifies a real image."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = export_model(work)
        wheel = build_wheel(work)
        for interpreter in sys.argv[1:] or [sys.executable]:
            python = install_server(interpreter, wheel, Path(tempfile.mkdtemp(dir=work)))
            check_absent(python)
            label = classify(python, model)
            version = subprocess.run(
                [str(python), "--version"], capture_output=True, text=True, check=True
            ).stdout.strip()
            print(f"slim server: {version}, no {', '.join(ABSENT)} installed; it answered {label!r}", flush=True)


def export_model(work: Path) -> Path:
    """A real exported model, from the test suite's checkpoint."""
    from export import ExportOptions, export_checkpoint
    from tests.checkpoints import make_checkpoint

    make_checkpoint(work / "model.pt")
    export_checkpoint(work / "model.pt", work / "model.onnx", ExportOptions())
    return work / "model.onnx"


def build_wheel(work: Path) -> Path:
    """What a user would install."""
    run([sys.executable, "-m", "pip", *QUIET, "wheel", "--no-deps", "--wheel-dir", str(work), str(ROOT)])
    (wheel,) = work.glob("*.whl")
    return wheel


def install_server(interpreter: str, wheel: Path, folder: Path) -> Path:
    """A fresh environment with the wheel and [serve]; returns its Python."""
    run([interpreter, "-m", "venv", str(folder)])
    python = folder / "bin" / "python"
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    run([str(python), "-m", "pip", "install", *QUIET, *constraints, f"{wheel}[serve]"])
    return python


def check_absent(python: Path) -> None:
    """The point of the exercise."""
    code = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(m) for m in {ABSENT!r}))"
    run([str(python), "-c", code])


def classify(python: Path, model: Path) -> str:
    """Start the server, send one real digit, stop it."""
    command = [str(python.with_name("cbn-serve")), str(model), "--port", "0"]
    with running_server(command, model.with_suffix(".log")) as url:
        request = urllib.request.Request(f"{url}/v1/classify", digit_png(), {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            label: str = json.load(answer)["results"][0]["predictions"][0]["label"]
    return label


def digit_png() -> bytes:
    """A real handwritten digit."""
    from PIL import Image

    from tests.checkpoints import digit_pixels

    buffer = io.BytesIO()
    Image.fromarray(digit_pixels(1)[0][0]).save(buffer, "PNG")
    return buffer.getvalue()


def run(command: list[str]) -> None:
    """Run, or stop with its exit code."""
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")


if __name__ == "__main__":
    main()
