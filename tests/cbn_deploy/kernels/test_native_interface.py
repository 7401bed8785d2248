"""Python's words for the C interface are those of c_api.h, and a library of another interface is not used."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import hashlib
import re
from pathlib import Path

import pytest

import cbn_deploy
import cbn_deploy.native_library as native_module
from cbn_deploy import native_interface
from cbn_deploy.native_interface import ABI, CudaKernel, Planes, Quantum, Tensors, Training
from cbn_deploy.native_library import native_library
from tests.cbn_deploy.kernels.native_cases import library

HEADER = Path(cbn_deploy.__file__).parent / "kernels" / "native" / "c_api.h"
# What the structures and functions of each interface were.
DIGESTS = {1: "05f1ae517adc5f8d488d10072ca26d197c90bf2fc42cf34747d88ccf24a6069d"}
STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "cbn_quantum": Quantum,
    "cbn_tensors": Tensors,
    "cbn_training": Training,
    "cbn_planes": Planes,
    "cbn_cuda_kernel": CudaKernel,
}
TYPES = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float, "cbn_quantum": Quantum}
POINTERS = {"const char*": ctypes.c_char_p}


def without_comments() -> str:
    return re.sub(r"/\*.*?\*/", " ", HEADER.read_text(), flags=re.DOTALL)


def fields(body: str) -> list[tuple[str, object]]:
    """(name, ctypes type) of a structure's fields, in order."""
    found: list[tuple[str, object]] = []
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, names = re.fullmatch(r"(.*?[\s*])((?:\w+,\s*)*\w+)", declaration, re.DOTALL).groups()
        kind = kind.strip()
        c_type = POINTERS.get(kind, ctypes.c_void_p) if kind.endswith("*") else TYPES[kind]
        found += [(name, c_type) for name in re.split(r",\s*", names)]
    return found


def test_the_structures_are_those_of_the_header() -> None:
    structures = re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", without_comments(), re.DOTALL)
    in_header = {name: body for body, name in structures}
    assert in_header.keys() == STRUCTURES.keys()
    for name, body in in_header.items():
        assert fields(body) == list(STRUCTURES[name]._fields_), name


def test_the_number_is_raised_when_the_interface_changes() -> None:
    text = without_comments()
    assert re.search(r"#define CBN_ABI (\d+)", text).group(1) == str(ABI)
    words = " ".join(re.sub(r"#define CBN_ABI \d+", "", text).split())
    assert hashlib.sha256(words.encode()).hexdigest() == DIGESTS.get(ABI), (
        "c_api.h has changed: raise CBN_ABI there and ABI in native_interface.py, and note the new digest here"
    )


def test_every_function_of_the_header_is_declared() -> None:
    functions = library().functions
    names = re.findall(r"CBN_EXPORT [\w *]*?\b(cbn_\w+)\(", without_comments())
    assert len(names) == 10
    for name in names:
        assert name == "cbn_abi" or getattr(functions, name).argtypes is not None, name


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_module, "_load", functools.cache(native_module._load.__wrapped__))


@pytest.mark.usefixtures("fresh")
def test_a_library_of_another_interface_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = library().path
    native_module._load.cache_clear()
    caplog.clear()
    monkeypatch.setattr(native_interface, "ABI", ABI + 1)
    assert native_library() is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} cannot be loaded (it was built for interface {ABI}, this version of the package has {ABI + 1}; "
        "install it again); the layer is computed portably."
    ]


@pytest.mark.usefixtures("fresh")
def test_a_library_from_before_there_was_a_number_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "kernels" / "native" / "libcbn.so"
    path.parent.mkdir(parents=True)
    path.symlink_to(next(Path(ctypes.__file__).parents[1].glob("lib-dynload/_ctypes.*.so")))  # any shared library
    monkeypatch.setattr(cbn_deploy, "__path__", [str(tmp_path)])
    assert native_library() is None
    assert f"{path} cannot be loaded (it was built for interface 0" in caplog.text
