"""Build libcbn with sanitizers and run its tests under them: memory errors, undefined behaviour, data races.

Needs g++ with its sanitizer libraries and the test environment; takes some minutes.

    python scripts/check_sanitizers.py [address,undefined] [thread]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NATIVE = Path("cbn_deploy", "kernels", "native")
# An editable installation of this package would come before the tree that is to be tested.
RUN_TESTS = """
import pathlib, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
sys.path.insert(0, sys.argv[1])
from cbn_deploy.native_library import native_library
library = native_library()
assert library is not None and library.path.is_relative_to(sys.argv[1]), library
import pytest
sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""
# Threads of libraries that are not instrumented look like races to the thread sanitizer.
SUPPRESSIONS = "race:onnxruntime_pybind11_state\nrace:libtorch\n"
# Sanitizers, the runtime library that an uninstrumented Python must preload, its options, and the tests to run.
RUNS = (
    (
        "address,undefined",
        "libasan.so",
        # Python frees little at its end; leaks of the library itself are what its own tests would repeat thousandfold.
        {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"},
        [
            *("tests/cbn_deploy/kernels/test_native_library.py", "tests/cbn_deploy/kernels/test_native_training.py"),
            *("tests/cbn_deploy/kernels/test_split_training.py", "tests/cbn_deploy/kernels/test_native_uint8.py"),
            *("tests/export/test_native_op.py", "tests/export/precision/test_channels_last.py"),
            *("tests/export/test_cuda_op.py", "-k", "not exported"),
        ],
    ),
    (
        "thread",
        "libtsan.so",
        {"TSAN_OPTIONS": "halt_on_error=1:suppressions=suppressions.txt"},
        [
            *("tests/cbn_deploy/kernels/test_native_library.py", "tests/cbn_deploy/kernels/test_native_training.py"),
            "tests/cbn_deploy/kernels/test_native_uint8.py",
            # Not the threads that torch lends: how its OpenMP runtime waits for them is hidden from the sanitizer.
            *("-k", "(threads or cut) and not number_of_threads"),
        ],
    ),
)


def main() -> None:
    """Exit code 0 if no sanitizer objects; names of sanitizers on the command line run only those."""
    for sanitizers, runtime, options, tests in RUNS:
        if sys.argv[1:] and sanitizers not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            tree = checkout(Path(folder))
            build(tree, sanitizers)
            (tree / "suppressions.txt").write_text(SUPPRESSIONS, encoding="utf-8")
            # libstdc++ comes along so that the sanitizer finds the functions for exceptions that it wraps.
            preload = " ".join(output(["g++", f"-print-file-name={name}"]) for name in (runtime, "libstdc++.so.6"))
            environment = {**os.environ, **options, "LD_PRELOAD": preload}
            done = subprocess.run(tests_in(tree, tests), cwd=tree, env=environment, check=False)
        if done.returncode:
            sys.exit(f"{sanitizers}: failed")
        print(f"{sanitizers}: nothing found", flush=True)


def checkout(folder: Path) -> Path:
    """A copy of the files that git knows, so that the built library does not land in the working tree."""
    names = output(["git", "-C", str(ROOT), "ls-files"]).splitlines()
    archive = subprocess.run(["tar", "c", *names], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def build(tree: Path, sanitizers: str) -> None:
    """The library, in its place in ``tree``."""
    folder = tree / "build-sanitized"
    options = [f"-DCBN_SANITIZE={sanitizers}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    subprocess.run(["cmake", "-S", str(tree), "-B", str(folder), *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder)], check=True, stdout=subprocess.DEVNULL)
    (folder / NATIVE / "libcbn.so").replace(tree / NATIVE / "libcbn.so")


def tests_in(tree: Path, tests: list[str]) -> list[str]:
    """The command that runs these tests of ``tree``, with the library that was built there."""
    return [sys.executable, "-c", RUN_TESTS, str(tree), *tests]


def output(command: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
