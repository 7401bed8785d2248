"""benchmarks/gpu_check.py as far as a machine without a GPU can try it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"
# Not what a machine with torch and Triton has.
ABSENT = (
    "typer",
    "rich",
    "pydantic",
    "pydantic_settings",
    "fastapi",
    "PIL",
    "sklearn",
    "onnx",
    "onnx_ir",
    "onnxscript",
)


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_section_runs_in_the_interpreter_on_what_a_bare_machine_has(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    done = run("--dry-run", "--seconds", "3000", "--json", str(path), folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["machine"]["dry_run"] is True
    sections = {section["name"]: section for section in found["sections"]}
    for name in (
        "parity of inference",
        "parity of training",
        "parity of the split path",
        "parity of operators",
        "networks",
        "copy bandwidth",
    ):
        assert sections[name]["status"] == "done", sections[name]
        assert sections[name]["rows"]
    assert all(row["ok"] for row in sections["parity of inference"]["rows"])
    for name in ("inference kernels", "training step of the layer", "training step of networks"):
        assert sections[name]["status"] in {"done", "cut short"}, sections[name]
    for name in ("ahead-of-time PTX", "recorded training steps", "onnxruntime", "TensorRT"):
        assert sections[name]["status"] == "skipped"
        assert sections[name]["reason"]


def test_a_section_that_breaks_costs_the_others_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from benchmarks.gpu.results import Clock, Report\n"
        "report = Report(pathlib.Path('r.json'), {})\n"
        "def good(section, clock): section.rows.append({'ok': True})\n"
        "def wrong(section, clock): section.rows.append({'ok': False})\n"
        "def broken(section, clock): section.rows.append({'ok': True}); raise ValueError('told')\n"
        "total = Clock.of(60)\n"
        "for body in (broken, good, wrong): report.run(body.__name__, 10, total, body)\n"
        "assert len(report.failures()) == 2, report.failures()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, SCRIPT.parents[1]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    sections = json.loads((tmp_path / "r.json").read_text())["sections"]
    assert [section["status"] for section in sections] == ["failed", "done", "done"]
    assert sections[0]["reason"] == "ValueError: told"
    assert sections[0]["rows"] == [{"ok": True}]


ENGINES = """
import sys, types
sys.path.insert(0, sys.argv[1])
import torch
from benchmarks.gpu import runtimes
from benchmarks.gpu.results import Clock, Section

class Engine:
    '''The network itself on the CPU where an engine would be; the portable one answers wrongly.'''
    def __init__(self, name, model): self.name, self.model = name, model
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def describe(self): return types.SimpleNamespace(kernel_path="fused" if self.name == "cbn" else "portable")
    def run(self, images):
        with torch.no_grad(): logits = self.model(torch.from_numpy(images)).numpy()
        return types.SimpleNamespace(logits=logits + (1.0 if self.name == "portable" else 0.0))
    def device_milliseconds(self, images, calls): return [{"cbn": 3.0, "bn": 2.0, "portable": 8.0}[self.name]] * calls

def engine(network, model, path, largest, *, flat):
    assert largest == 2 and flat == (path.stem == "portable")
    assert runtimes._description(network, model).components == (0 if path.stem == "bn" else 4)
    return Engine(path.stem, model)

runtimes._engine, runtimes._check_tensorrt = engine, lambda device: None
section = Section("TensorRT")
runtimes.tensorrt(section, Clock.of(60), "cuda", tiny=True)
*parity, times = section.rows
assert [(row["engine"], row["ok"], row["kernels"]) for row in parity] == [
    ("cbn", True, "fused"), ("bn", True, "portable"), ("portable", False, "portable")
], parity
assert (times["batch"], times["cbn ratio"], times["portable ratio"]) == (2, 1.5, 4.0), times
"""


def test_engines_are_compared_with_float64_and_with_the_twin(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENGINES, SCRIPT.parents[1]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = run(folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == ("This machine has no CUDA device; --dry-run tries the script itself on the CPU.")
    assert not done.stdout


def test_help(tmp_path: Path) -> None:
    done = run("--help", folder=tmp_path)
    assert done.returncode == 0
    assert "--dry-run" in done.stdout
