"""A checkpoint as candidates for the benchmark: the CBN network and its batch-norm twin, in every runtime.

To add a runtime, add an entry to :data:`RUNTIMES`.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from cbn_deploy.benchmark import Candidate, DeviceClock, Progress
from cbn_deploy.checkpoint import Checkpoint
from cbn_deploy.errors import RuntimeUnavailableError
from cbn_deploy.native_library import native_library
from cbn_deploy.runtime.factory import RuntimeName, open_session
from export.bench import gpu
from export.bench.compiler import compile_network, why_no_compiler
from export.bench.networks import (
    Network,
    NetworkLabel,
    bench_images,
    cbn_network,
    efficient_in_torch,
    paper_formula,
    twin_network,
)
from export.to_onnx import to_onnx

__all__ = ["RUNTIMES", "Built", "Entry", "Runtime", "Suite", "prepare"]

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Built(NamedTuple):
    """A network ready to run: how, by which version of the package, by which code; the device's clock and its kind."""

    run: Run
    version: str
    kernel_path: str
    device_clock: DeviceClock | None = None
    clock: gpu.ClockKind = "events"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network in one runtime: ready to run, or the reason why not.

    Attributes:
        name: "NETWORK/RUNTIME", such as "cbn/onnxruntime".
        network: "cbn", or "bn" for the batch-norm twin.
        runtime: a key of :data:`RUNTIMES`.
        twin: name of the batch-norm candidate that a CBN one is compared with.
        version: of the runtime's package, "" if it is absent.
        kernel_path: which code computes the layer.
        clock: what tells the time on the device; ``None`` without a device.
        candidate: what the benchmark runs; ``None`` if skipped.
        skipped: one sentence; ``None`` if there is a candidate.
    """

    name: str
    network: NetworkLabel
    runtime: str
    twin: str = ""
    version: str = ""
    kernel_path: str = ""
    clock: gpu.ClockKind | None = None
    candidate: Candidate | None = None
    skipped: str | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Everything to benchmark.

    Attributes:
        entries: in table order.
        images: float32 (n, 3, H, W), the input of comparison and timing.
        images_origin: where they come from, for the report.
    """

    entries: Sequence[Entry]
    images: NDArray[np.float32]
    images_origin: str


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A way to run a network.

    Attributes:
        title: for tables and plots.
        build: makes a network ready to run; raises RuntimeUnavailableError.
        missing: why it cannot run here, found without heavy work; ``None`` if it probably can.
        networks: which networks it is a way to run: the paper's formula says nothing about batch norm.
        twin: the runtime whose batch-norm candidate it is compared with; ``None``: itself.
    """

    title: str
    build: Callable[[Network, _Workspace], Built]
    missing: Callable[[], str | None]
    networks: tuple[NetworkLabel, ...] = ("cbn", "bn")
    twin: str | None = None


@contextmanager
def prepare(
    checkpoint: Checkpoint,
    runtimes: Sequence[str],
    threads: int,
    largest_batch: int,
    progress: Progress | None = None,
) -> Iterator[Suite]:
    """Build every candidate; sessions, temporary files and torch's thread count last as long as the context.

    Args:
        checkpoint: of a CBN model.
        runtimes: keys of :data:`RUNTIMES`.
        threads: the same for all runtimes.
        largest_batch: what a runtime that must know is made ready for.
        progress: called with "preparing" and the fraction done.

    Raises:
        CheckpointError: a plain batch-norm model, or tensors that do not fit.
    """
    with _torch_threads(threads), ExitStack() as stack:
        images, origin = bench_images(checkpoint)
        workspace = _Workspace(checkpoint, images, threads, largest_batch, stack)
        wanted = [(label, name) for name in runtimes for label in RUNTIMES[name].networks]
        entries = []
        for done, (label, name) in enumerate(wanted):
            if progress is not None:
                progress("preparing", done / len(wanted))
            entries.append(_entry(label, name, workspace))
        yield Suite(entries=entries, images=images, images_origin=origin)


def _entry(label: NetworkLabel, runtime: str, workspace: _Workspace) -> Entry:
    name, twin = f"{label}/{runtime}", f"bn/{RUNTIMES[runtime].twin or runtime}"
    missing = RUNTIMES[runtime].missing()
    if missing is not None:
        return Entry(name=name, network=label, runtime=runtime, twin=twin, skipped=missing)
    network = workspace.network(label)
    try:
        built = RUNTIMES[runtime].build(network, workspace)
    except RuntimeUnavailableError as error:
        return Entry(name=name, network=label, runtime=runtime, twin=twin, skipped=str(error))
    return Entry(
        name=name,
        network=label,
        runtime=runtime,
        twin=twin,
        version=built.version,
        kernel_path=built.kernel_path,
        clock=None if built.device_clock is None else built.clock,
        candidate=Candidate(
            name=name,
            run=built.run,
            expected=network.expected,
            limits=network.limits,
            device_clock=built.device_clock,
        ),
    )


class _Workspace:
    """What builders share: networks and their exported files, each made once when first needed; the thread count.

    Attributes:
        threads: the same for all runtimes.
        largest_batch: the most images that a call will have.
        stack: closes what is registered on it when the benchmark is over.
    """

    def __init__(
        self, checkpoint: Checkpoint, images: NDArray[np.float32], threads: int, largest_batch: int, stack: ExitStack
    ) -> None:
        self.threads = threads
        self.largest_batch = largest_batch
        self.stack = stack
        self._checkpoint = checkpoint
        self._images = images
        self._networks: dict[NetworkLabel, Network] = {}
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

    def network(self, label: NetworkLabel) -> Network:
        """The checkpoint's network or its twin."""
        if label not in self._networks:
            make = cbn_network if label == "cbn" else twin_network
            self._networks[label] = make(self._checkpoint, self._images)
        return self._networks[label]

    def onnx_file(self, network: Network, *, flat: bool = False) -> Path:
        """The network as cbn-export writes it, or with ``--inline``."""
        path = self._folder / f"{network.label}{'-flat' if flat else ''}.onnx"
        if not path.exists():
            size = network.description.preprocessing
            proto = to_onnx(network.module, torch.zeros(1, 3, size.height, size.width), inline_functions=flat)
            onnx.helper.set_model_props(proto, network.description.to_metadata())
            path.write_bytes(proto.SerializeToString())
        return path


def _eager_paper(network: Network, workspace: _Workspace) -> Built:
    del workspace
    return Built(_torch_run(paper_formula(network.module)), torch.__version__, "paper's formula")


def _eager(network: Network, workspace: _Workspace) -> Built:
    del workspace
    path = "eager" if native_library() is None or network.label == "bn" else "eager, native layer"
    return Built(_torch_run(network.module), torch.__version__, path)


def _compile(network: Network, workspace: _Workspace) -> Built:
    del workspace
    return Built(compile_network(efficient_in_torch(network.module)), torch.__version__, "compiled")


def _session(runtime: RuntimeName, *, flat: bool = False) -> Callable[[Network, _Workspace], Built]:
    def build(network: Network, workspace: _Workspace) -> Built:
        session = open_session(workspace.onnx_file(network, flat=flat), runtime, workspace.threads)
        workspace.stack.enter_context(session)
        info = session.describe()
        return Built(lambda images: session.run(images).logits, info.version, info.kernel_path)

    return build


def _cuda(make: Callable[[torch.nn.Module], tuple[Run, DeviceClock]], path: str) -> Callable[..., Built]:
    def build(network: Network, workspace: _Workspace) -> Built:
        workspace.stack.callback(gpu.tf32_off())
        module = efficient_in_torch(network.module) if path == "compiled" else network.module
        run, device_clock = make(module)
        return Built(run, torch.__version__, path, device_clock)

    return build


def _onnxruntime_cuda(*, flat: bool) -> Callable[[Network, _Workspace], Built]:
    def build(network: Network, workspace: _Workspace) -> Built:
        session, device_clock, kind = gpu.onnxruntime_on_cuda(
            workspace.onnx_file(network, flat=flat), workspace.threads
        )
        workspace.stack.enter_context(session)
        info = session.describe()
        return Built(lambda images: session.run(images).logits, info.version, info.kernel_path, device_clock, kind)

    return build


def _tensorrt(*, flat: bool) -> Callable[[Network, _Workspace], Built]:
    def build(network: Network, workspace: _Workspace) -> Built:
        session = gpu.engine(workspace.onnx_file(network, flat=flat), workspace.largest_batch)
        workspace.stack.enter_context(session)
        info = session.describe()
        return Built(
            lambda images: session.run(images).logits, info.version, info.kernel_path, session.device_milliseconds
        )

    return build


def _needs(package: str, extra: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; install it with: pip install 'cbn-deploy[{extra}]'."
        return None

    return missing


def _nothing_missing() -> None:
    return None


def _torch_run(module: torch.nn.Module) -> Run:
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return logits

    return run


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Intra-op threads for the context; inter-op threads 1 for good, which torch allows only before it first works.

    Too late does no harm: a forward pass never uses them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        with suppress(RuntimeError):
            torch.set_num_interop_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


RUNTIMES: Mapping[str, Runtime] = {
    "eager-paper": Runtime(
        title="PyTorch, paper's formula", build=_eager_paper, missing=_nothing_missing, networks=("cbn",)
    ),
    "eager": Runtime(title="PyTorch eager", build=_eager, missing=_nothing_missing),
    "compile": Runtime(title="torch.compile", build=_compile, missing=why_no_compiler),
    "onnxruntime": Runtime(title="ONNX Runtime", build=_session("onnxruntime"), missing=_needs("onnxruntime", "cpu")),
    "ort-portable": Runtime(
        title="ONNX Runtime, portable",
        build=_session("onnxruntime", flat=True),
        missing=_needs("onnxruntime", "cpu"),
        networks=("cbn",),
        twin="onnxruntime",
    ),
    "openvino": Runtime(title="OpenVINO", build=_session("openvino"), missing=_needs("openvino", "openvino")),
    "cuda": Runtime(title="PyTorch on CUDA", build=_cuda(gpu.eager_on_cuda, "eager"), missing=gpu.why_no_cuda),
    "cuda-compile": Runtime(
        title="torch.compile on CUDA", build=_cuda(gpu.compiled_on_cuda, "compiled"), missing=gpu.why_no_cuda
    ),
    "cuda-graphs": Runtime(
        title="PyTorch in CUDA graphs", build=_cuda(gpu.graphs_on_cuda, "eager"), missing=gpu.why_no_cuda
    ),
    "ort-cuda": Runtime(
        title="ONNX Runtime on CUDA", build=_onnxruntime_cuda(flat=False), missing=gpu.why_no_onnxruntime_cuda
    ),
    "ort-cuda-portable": Runtime(
        title="ONNX Runtime on CUDA, portable",
        build=_onnxruntime_cuda(flat=True),
        missing=gpu.why_no_onnxruntime_cuda,
        networks=("cbn",),
        twin="ort-cuda",
    ),
    "tensorrt": Runtime(title="TensorRT", build=_tensorrt(flat=False), missing=gpu.why_no_tensorrt),
    "trt-portable": Runtime(
        title="TensorRT, portable",
        build=_tensorrt(flat=True),
        missing=gpu.why_no_tensorrt,
        networks=("cbn",),
        twin="tensorrt",
    ),
}
