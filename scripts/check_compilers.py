"""Build libcbn with clang and for aarch64, and check both: what CI's g++ on x86-64 does not see.

    python scripts/check_compilers.py [clang] [aarch64]

Needs clang++, aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: clang, g++-aarch64-linux-gnu, qemu-user-static).
The clang build runs the library's tests in Python and in onnxruntime. The aarch64 build runs emulated, and is compared
with the equations in double precision (tests/cbn_deploy/kernels/formula.cpp).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from check_sanitizers import NATIVE, checkout, tests_in

TESTS = [
    *("tests/cbn_deploy/kernels/test_native_library.py", "tests/cbn_deploy/kernels/test_native_training.py"),
    *("tests/cbn_deploy/kernels/test_split_training.py", "tests/cbn_deploy/kernels/test_native_uint8.py"),
    *("tests/export/test_native_op.py", "tests/export/precision/test_channels_last.py"),
    *("tests/export/test_cuda_op.py", "-k", "not exported"),
]


def main() -> None:
    """Exit code 0 if both builds are warning-free and right."""
    for name, check in (("clang", check_clang), ("aarch64", check_aarch64)):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            check(checkout(Path(folder)))
        print(f"{name}: right", flush=True)


def check_clang(tree: Path) -> None:
    """The library's own tests, on this processor."""
    built = build(tree, "-DCMAKE_CXX_COMPILER=clang++")
    built.replace(tree / NATIVE / "libcbn.so")
    subprocess.run(tests_in(tree, TESTS), cwd=tree, check=True)
    run_formula(tree, "clang++", [])


def check_aarch64(tree: Path) -> None:
    """The equations, emulated."""
    compiler = "aarch64-linux-gnu-g++"
    build(tree, "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}")
    run_formula(tree, compiler, ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"])


def build(tree: Path, *options: str) -> Path:
    """The library, where it was built; a warning is an error."""
    folder = tree / "build-checked"
    options = (*options, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS=-Werror")
    subprocess.run(["cmake", "-S", str(tree), "-B", str(folder), *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder / NATIVE / "libcbn.so"


def run_formula(tree: Path, compiler: str, emulator: list[str]) -> None:
    """Compile the comparison with the library's sources and run it; raises if it fails."""
    program = tree / "formula"
    folder = tree / NATIVE
    sources = [str(path) for path in folder.glob("*.cpp") if path.stem not in {"kernel_avx2", "kernel_avx512"}]
    sources.append(str(tree / "tests" / "cbn_deploy" / "kernels" / "formula.cpp"))
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Wno-psabi", '-DCBN_VERSION="check"', f"-I{folder}"]
    subprocess.run([compiler, *flags, *sources, "-o", str(program)], check=True)
    subprocess.run([*emulator, str(program)], check=True)


if __name__ == "__main__":
    main()
