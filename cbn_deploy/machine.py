"""What a measurement was taken on: processor, operating system, package versions. A time without these says nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cbn_deploy import __version__
from cbn_deploy.runtime.factory import available_cpus

__all__ = ["describe_machine", "is_busy", "package_versions"]

_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Describe this machine in plain JSON types.

    Args:
        packages: distribution names whose versions matter; those not installed are left out.

    Returns:
        ``cpu`` (model name), ``physical_cores`` (``None`` where unknown), ``logical_cpus``, ``available_cpus``
        (affinity and container quota), ``load_average`` (1 minute; ``None`` where unknown), ``os``, ``python``,
        ``packages``.
    """
    fields = _cpu_info()
    return {
        "cpu": _cpu_model(fields),
        "physical_cores": _physical_cores(fields),
        "logical_cpus": os.cpu_count(),
        "available_cpus": available_cpus(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {"cbn-deploy": __version__, **package_versions(packages)},
    }


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of the installed ones among ``packages``."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def is_busy(machine: Mapping[str, Any]) -> bool:
    """Whether other processes were using half of a CPU or more when :func:`describe_machine` looked."""
    load: float | None = machine["load_average"]
    return load is not None and load >= 0.5 * float(machine["available_cpus"])


def _cpu_info() -> list[dict[str, str]]:
    """One dict a logical CPU; empty where there is no /proc/cpuinfo."""
    try:
        blocks = _CPU_INFO.read_text(encoding="utf-8", errors="replace").strip().split("\n\n")
    except OSError:
        return []
    return [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in blocks
    ]


def _cpu_model(fields: list[dict[str, str]]) -> str:
    names = [cpu["model name"] for cpu in fields if cpu.get("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _physical_cores(fields: list[dict[str, str]]) -> int | None:
    cores = {(cpu["physical id"], cpu["core id"]) for cpu in fields if "physical id" in cpu and "core id" in cpu}
    return len(cores) or None
