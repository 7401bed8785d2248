"""The whole road on real handwritten digits: train, evaluate, export, compare, serve, classify over HTTP.

Every step is the command that a user would type, printed before it runs; everything lands in a new folder runs/demo-*.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from demo_picture import draw_picture
from PIL import Image
from rich.console import Console
from running_server import running_server

from cbn_deploy.data import DataConfig, load_data

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
IMAGES = 20
console = Console()


def main() -> None:
    """Run every step; stop with its exit code at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, help="a shorter or longer training than the recipe's")
    parser.add_argument("--picture", type=Path, help="also write the summary picture here")
    arguments = parser.parse_args()
    started = time.monotonic()
    os.chdir(ROOT)  # so that the commands shown have the short paths that a user would type
    out = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    model, onnx = out / "digits" / "model.pt", out / "model.onnx"

    epochs = f" --set epochs={arguments.epochs}" if arguments.epochs else ""
    bench = "--runtimes eager-paper,eager,onnxruntime,ort-portable,openvino --batch-sizes 1,32 --rounds 10"
    step(
        "1. Train on a long-tailed subset of real handwritten digits", f"cbn-train digits-lt --out {out}/digits{epochs}"
    )
    step("2. Evaluate on balanced test images", f"cbn-eval {model} --data digits --json {out}/scores.json")
    step("3. Export to one self-describing file, parity proved first", f"cbn-export {model} -o {onnx}")
    step("4. The exported file is as good", f"cbn-eval {onnx} --data digits --json {out}/scores-onnx.json")
    step(
        "5. Compare latency with eager PyTorch and the batch-norm twin",
        f"cbn-bench {model} {bench} --json {out}/bench.json --plot {out}/bench.png",
    )
    answers = serve_and_classify(onnx, out)
    draw_picture(out, answers, out / "demo.png")
    if arguments.picture:
        draw_picture(out, answers, arguments.picture)
    summarise(out, answers, time.monotonic() - started)


def step(title: str, command: str) -> None:
    """Show a command, run it."""
    console.rule(f"[bold]{title}")
    console.print(f"$ {command}", style="cyan", highlight=False, markup=False)
    words = shlex.split(command)
    done = subprocess.run([str(BIN / words[0]), *words[1:]], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def serve_and_classify(model: Path, out: Path) -> list[dict[str, Any]]:
    """Start the real server, send real test images as PNG files, stop the server."""
    console.rule("[bold]6. Serve the file and classify real images over HTTP")
    files = write_images(out / "images")
    command = ["cbn-serve", str(model), "--port", "0"]
    console.print(f"$ {shlex.join(command)}", style="cyan", highlight=False, markup=False)
    with running_server([str(BIN / command[0]), *command[1:]], out / "server.log") as url:
        console.print(
            f"$ curl -F image=@{files[0][0]} {url}/v1/classify",
            style="cyan",
            highlight=False,
            markup=False,
        )
        results = classify(url, [path for path, _ in files])
        console.print_json(json.dumps(results[0]))
    answers = [
        {"image": str(path), "truth": truth, **result["predictions"][0]}
        for (path, truth), result in zip(files, results, strict=True)
    ]
    right = sum(answer["label"] == answer["truth"] for answer in answers)
    console.print(f"{right} of {len(answers)} images answered with the right label over HTTP.")
    return answers


def write_images(folder: Path) -> list[tuple[Path, str]]:
    """Two test images of each digit as PNG files; the training never saw them."""
    data = load_data(DataConfig(source="digits-lt"), None)
    folder.mkdir(parents=True)
    files = []
    for label, name in enumerate(data.class_names):
        for nth in range(IMAGES // len(data.class_names)):
            index = int((data.test.labels == label).nonzero()[0][nth])
            path = folder / f"{name}-{nth}.png"
            Image.fromarray(data.test.pixels(index)).save(path)
            files.append((path, name))
    return files


def classify(url: str, files: list[Path]) -> list[dict[str, Any]]:
    """POST all files as one multipart form; one result an image."""
    boundary = uuid.uuid4().hex
    parts = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + path.read_bytes()
        + b"\r\n"
        for path in files
    )
    body = parts + f"--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{url}/v1/classify?top_k=3", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        results: list[dict[str, Any]] = json.load(answer)["results"]
    return results


def summarise(out: Path, answers: list[dict[str, Any]], seconds: float) -> None:
    """What came out, and where to look."""
    scores = json.loads((out / "scores.json").read_text())
    right = sum(answer["label"] == answer["truth"] for answer in answers)
    console.rule("[bold green]Done")
    groups = ", ".join(f"{name} {scores[name]:.1%}" for name in ("many", "medium", "few") if scores[name] is not None)
    console.print(
        f"Balanced test top-1 [bold]{scores['top1']:.1%}[/] ({groups}); {right}/{len(answers)} right over HTTP."
    )
    for name, what in (
        ("digits/report.html", "training report"),
        ("model.onnx", "the exported model"),
        ("bench.png", "latency of every runtime"),
        ("demo.png", "all of it in one picture"),
    ):
        console.print(f"  {what:26} {out / name}", highlight=False)
    console.print(f"Serve it again:  {os.path.relpath(BIN / 'cbn-serve')} {out / 'model.onnx'}", highlight=False)
    console.print(f"It took {seconds / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
