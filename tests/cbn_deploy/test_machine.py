"""The machine's description against other ways to learn the same."""

from __future__ import annotations

import json
import os
import platform

import numpy
import pytest

from cbn_deploy import __version__, machine
from cbn_deploy.machine import describe_machine, is_busy


def test_description_is_json_and_true():
    described = json.loads(json.dumps(describe_machine(["numpy", "no-such-package"])))
    assert described["packages"] == {"cbn-deploy": __version__, "numpy": numpy.__version__}
    assert described["python"] == platform.python_version()
    assert described["logical_cpus"] == os.cpu_count()
    assert 1 <= described["available_cpus"] <= described["logical_cpus"]
    assert described["cpu"]


def test_cores_are_counted_once_however_many_threads_they_have(tmp_path, monkeypatch):
    cpus = [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 0)]
    text = "\n\n".join(
        f"processor\t: {index}\nmodel name\t: Some CPU @ 2.0: GHz\nphysical id\t: {package}\ncore id\t\t: {core}"
        for index, (package, core) in enumerate(cpus)
    )
    file = tmp_path / "cpuinfo"
    file.write_text(text + "\n\n")
    monkeypatch.setattr(machine, "_CPU_INFO", file)
    described = describe_machine([])
    assert described["physical_cores"] == 3
    assert described["cpu"] == "Some CPU @ 2.0: GHz"


def test_without_cpuinfo_the_unknown_is_null(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "absent")
    described = describe_machine([])
    assert described["physical_cores"] is None
    assert described["cpu"] == platform.processor() or platform.machine()


@pytest.mark.parametrize(("load", "busy"), [(None, False), (0.2, False), (1.0, True), (7.0, True)])
def test_a_busy_machine_is_recognised(load, busy):
    assert is_busy({"load_average": load, "available_cpus": 2}) is busy
