"""Run an exported graph so that every node of the op can be compared with the formula on what it really reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from cbn_deploy.errors import ParityError
from cbn_deploy.native_library import NativeLibrary
from cbn_deploy.runtime.signature import INPUT
from export.inputs import ParityInputs
from export.op_parity import OpComparison
from export.op_sites import OpSite, tap
from export.parity_report import OpParity
from export.sessions import native_kernels, ort_session

__all__ = ["SEED", "Progress", "TappedModel", "check_ops", "in_batches", "require_ops"]

SEED = 20260
Progress = Callable[[int, int], None]

# What a batch's tapped activations may take.
_BATCH_BYTES = 128 * 2**20
_BATCH = 16


def check_ops(
    exported: onnx.ModelProto, sites: Sequence[OpSite], inputs: ParityInputs, progress: Progress | None = None
) -> tuple[OpParity, ...]:
    """Compare every node, computed by its standard-ops body and, where it is installed, by the native library.

    Args:
        exported: the graph that is to become the file, flat or with the op's nodes.
        sites: where the op is in it (of the graph before inlining, for a flat one).
        inputs: what to feed it.
        progress: called with (inputs done, inputs in all).

    Raises:
        ParityError: a node differs from the formula by more than rounding explains.
    """
    ops = [OpComparison(site) for site in sites]
    if ops:
        tapped = [TappedModel(exported, sites)]
        if (native := native_kernels(exported)) is not None:
            tapped.append(TappedModel(exported, sites, native))
        rng = np.random.default_rng(SEED)
        for indices in tapped[0].batches(inputs):
            images, kinds = inputs.batch(indices), [inputs.kind(i) for i in indices]
            for model in tapped:
                model.feed(ops, images, kinds, rng)
            if progress is not None:
                progress(indices[-1] + 1, len(inputs))
    results = tuple(op.result() for op in ops)
    require_ops(results)
    return results


class TappedModel:
    """An exported graph that also returns what every site reads and writes.

    Float16 nodes are run once more, each alone, on what the graph says they read: a runtime without float16 arithmetic
    computes in float32 and leaves out the rounding between one node and the next, so their results in the graph belong
    to other inputs.
    """

    def __init__(self, exported: onnx.ModelProto, sites: Sequence[OpSite], native: NativeLibrary | None = None) -> None:
        self._session = ort_session(tap(exported, sites), native)
        self._names = [output.name for output in self._session.get_outputs()]
        halves = [site for site in sites if site.dtype == ir.DataType.FLOAT16]
        self._alone = [(site, ort_session(_node_alone(exported, site), native)) for site in halves]

    def feed(
        self, ops: Sequence[OpComparison], images: NDArray[np.float32], kinds: Sequence[str], rng: np.random.Generator
    ) -> None:
        """Run a batch and let every comparison have its values."""
        values = dict(zip(self._names, self._session.run(self._names, {INPUT: images}), strict=True))
        # A model whose first layer is the op has its input among the values it reads.
        values[INPUT] = images
        for site, session in self._alone:
            feeds = {name: values[name] for name in (site.x, site.residual) if name is not None}
            values[site.y] = session.run([site.y], feeds)[0]
        for op in ops:
            op.compare(values, kinds, rng)

    def batches(self, inputs: ParityInputs) -> Iterator[list[int]]:
        """Batches of 2 to 16, as many as the tapped activations' memory allows."""
        per_image = sum(array.nbytes for array in self._session.run(None, {INPUT: inputs.batch([0])}))
        yield from in_batches(len(inputs), int(np.clip(_BATCH_BYTES // per_image, 2, _BATCH)))


def _node_alone(exported: onnx.ModelProto, site: OpSite) -> onnx.ModelProto:
    """A model of one node of ``exported``, its tables and its function."""
    model = onnx.ModelProto()
    model.CopyFrom(exported)
    (node,) = [node for node in exported.graph.node if node.name == site.layer]
    element = int(site.dtype)
    tables = [tensor for tensor in exported.graph.initializer if tensor.name in node.input]
    # X and residual may be the same value.
    inputs = dict.fromkeys(name for name in (site.x, site.residual) if name is not None)
    graph = onnx.helper.make_graph(
        [node],
        site.layer,
        [onnx.helper.make_tensor_value_info(name, element, None) for name in inputs],
        [onnx.helper.make_tensor_value_info(site.y, element, None)],
        tables,
    )
    model.graph.CopyFrom(graph)
    return model


def in_batches(count: int, size: int = _BATCH) -> Iterator[list[int]]:
    """0 .. count - 1 in lists of ``size``."""
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))


def require_ops(ops: Sequence[OpParity]) -> None:
    """Raise for the worst node beyond its limit.

    Raises:
        ParityError: there is one; the message names it.
    """
    worst = max(ops, key=lambda op: op.of_limit, default=None)
    if worst is not None and worst.of_limit > 1.0:
        raise ParityError(
            f"The exported node {worst.layer} ({worst.op_type}) differs from the paper's formula by "
            f"{worst.max_error:.3g}, {worst.of_limit:.3g} times what rounding explains (worst input: "
            f"{worst.worst_input}), so nothing was written; try another version than onnxruntime "
            f"{onnxruntime.__version__} and report it."
        )
