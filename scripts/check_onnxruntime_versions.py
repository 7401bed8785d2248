"""Run the native op in the oldest and the newest supported onnxruntime, each in a fresh environment.

libcbn knows onnxruntime's binary interface from its own header (cbn_deploy/kernels/native/ort_abi.h); this is what
proves the header right. The environments get that onnxruntime from the package index and everything else from the
environment that runs this script.

    python scripts/check_onnxruntime_versions.py [VERSION ...]
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("test_native_op", "test_cuda_op", "test_blocked_layout", "precision/test_channels_last")
TESTS = [f"tests/export/{name}.py" for name in NAMES]
CHECK = """
import onnxruntime
from cbn_deploy.native_library import native_library
assert native_library() is not None
print(onnxruntime.__version__)
"""


def main() -> None:
    """Exit code 0 if the op's tests pass with every version."""
    for version in sys.argv[1:] or [oldest(), "newest"]:
        with tempfile.TemporaryDirectory() as folder:
            python = environment(Path(folder), version)
            settings = {**os.environ, "PYTHONPATH": str(ROOT)}
            found = subprocess.run(
                [str(python), "-c", CHECK], env=settings, check=True, stdout=subprocess.PIPE, text=True
            ).stdout.strip()
            command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, "-k", "not exported"]
            done = subprocess.run(command, cwd=ROOT, env=settings, check=False)
        if done.returncode:
            sys.exit(f"onnxruntime {found}: failed")
        print(f"onnxruntime {found}: the native op passes", flush=True)


def oldest() -> str:
    """The lower bound of pyproject.toml."""
    match = re.search(r'"onnxruntime>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if match is None:
        sys.exit("pyproject.toml has no lower bound for onnxruntime")
    return match[1]


def environment(folder: Path, version: str) -> Path:
    """A fresh environment with that onnxruntime before all else; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, wanted], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (packages / "parent.pth").write_text("".join(lines), encoding="utf-8")
    return python


if __name__ == "__main__":
    main()
