"""Make the virtual environment that `make demo` and `make test` use. Needs only Python >= 3.10 and pip's network.

    python3 scripts/setup_env.py .venv demo      what the demo needs: training, export, serving, OpenVINO
    python3 scripts/setup_env.py .venv test      the demo's, and what the tests need

A second call with nothing changed does nothing. On a Linux machine without an NVIDIA driver torch comes from its CPU
index if that answers, so that no CUDA libraries are downloaded that nothing could use.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
EXTRAS = {"demo": "train,export,serve,openvino", "test": "dev"}
# TensorRT-RTX builds engines without a GPU, as the tests do; TensorRT's own bindings check the plugin's registration;
# CUDA's let the Session find out that there is no GPU. --no-deps: they ask for libraries that all this does without.
TENSORRT = {
    "TensorRT-RTX": ("tensorrt-rtx-cu13-libs==1.7.1.116", "tensorrt-rtx-cu13-bindings==1.7.1.116"),
    "TensorRT's bindings": ("tensorrt-cu13-bindings==11.4.0.106",),
    "CUDA's bindings": ("cuda-bindings==13.5.0", "cuda-pathfinder==1.9.0"),
}


def main() -> None:
    """Create or complete the environment."""
    if sys.version_info < (3, 10):  # noqa: UP036 - this script is what tells people with an older Python
        sys.exit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}; run make PYTHON=python3.11 ...")
    if len(sys.argv) != 3 or sys.argv[2] not in EXTRAS:
        sys.exit(f"usage: {sys.argv[0]} FOLDER {'|'.join(EXTRAS)}")
    folder, purpose = Path(sys.argv[1]).resolve(), sys.argv[2]
    stamp = folder / f".complete-{purpose}"
    wanted = fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    python = folder / "bin" / "python"
    if not python.is_file():
        print(f"Creating {folder}", flush=True)
        venv.create(folder, with_pip=True)
    install(python, purpose)
    stamp.write_text(wanted)


def fingerprint() -> str:
    """Changes when what would be installed changes."""
    native = ROOT / "cbn_deploy" / "kernels" / "native"
    sources = sorted(path for path in native.iterdir() if path.suffix in {".cpp", ".h", ".inc", ".txt"})
    files = (ROOT / "pyproject.toml", ROOT / "constraints.txt", ROOT / "CMakeLists.txt", Path(__file__), *sources)
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def install(python: Path, purpose: str) -> None:
    """torch first, so that its CPU build satisfies what the extras ask for; then the project, editable."""
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    index = ["--extra-index-url", TORCH_CPU_INDEX] if cpu_index_is_of_use() else []
    print("Installing torch" + (" (CPU build)" if index else ""), flush=True)
    run([*pip, *constraints, *index, "torch"])
    print(f"Installing cbn-deploy[{EXTRAS[purpose]}]", flush=True)
    run([*pip, *constraints, "--editable", f"{ROOT}[{EXTRAS[purpose]}]"])
    if purpose == "test" and sys.platform == "linux":
        for name, packages in TENSORRT.items():
            print(f"Installing {name}", flush=True)
            done = subprocess.run([*pip, "--no-deps", *packages], check=False)
            if done.returncode:
                print(f"{name} are not to be had here; their tests will be skipped.", flush=True)


def cpu_index_is_of_use() -> bool:
    """Linux wheels of torch carry CUDA by default; elsewhere, or with an NVIDIA driver, the default is right."""
    if sys.platform != "linux" or shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return False
    try:
        with urllib.request.urlopen(f"{TORCH_CPU_INDEX}/torch/", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def run(command: list[str]) -> None:
    """Run pip; its own message says what is wrong."""
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(
            f"The installation failed (see above); mend it and run the same command again: {' '.join(command[3:])}"
        )


if __name__ == "__main__":
    main()
