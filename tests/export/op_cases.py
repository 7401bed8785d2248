"""Cases and one-node models for the op's tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.function_body import OPSET, function_body
from export.op import DOMAIN, TABLES, VERSION, OpForm
from export.to_onnx import IR_VERSION
from tests.reference.op_float64 import OpResult, compound_batch_normalization
from tests.reference.tolerances import TOLERANCES

# Where rounding may turn a posterior over altogether the model allows the whole difference and no more: to a float's
# precision, then.
UNIT = TOLERANCES["op float32"].rtol * (1 + 2**-20)


@dataclass(frozen=True)
class Case:
    """One evaluation of the op: float32 inputs and tables, and the attributes."""

    x: NDArray[np.float32]
    residual: NDArray[np.float32]
    tables: dict[str, NDArray[np.float32]]
    epsilon: float
    density_scale: float

    def reference(self, form: OpForm) -> OpResult:
        """In float64, by the formula."""
        with np.errstate(all="ignore"):
            return compound_batch_normalization(
                self.x.astype(np.float64),
                *(self.tables[name].astype(np.float64) for name in TABLES),
                float(np.float32(self.epsilon)),
                float(np.float32(self.density_scale)),
                unit=UNIT,
                residual=self.residual.astype(np.float64) if form.residual else None,
                relu=form.relu,
            )

    def feeds(self, form: OpForm) -> dict[str, NDArray[np.float32]]:
        """Model inputs."""
        return {"X": self.x, "residual": self.residual} if form.residual else {"X": self.x}


def random_case(
    seed: int, batch: int, channels: int, components: int, spatial: tuple[int, ...], extremity: float, alike: bool
) -> Case:
    """Random tables; ``extremity`` 0 is tame, 1 spans variances of 1e-8..1e6, means to 1e3 and priors from 0 to 1.

    ``alike`` makes the components equal but for a relative 1e-6.
    """
    rng = np.random.default_rng(seed)
    shape = (components, channels)
    tau = rng.dirichlet(np.full(components, 1.0 - 0.9 * extremity))
    if components > 1 and extremity > 0.5:
        tau[rng.integers(components)] = rng.choice([0.0, 1e-30])
        tau[int(tau.argmax())] += 1 - tau.sum()
    mean = rng.normal(size=shape) * 10 ** rng.uniform(-1, 3 * extremity, shape)
    var = 10 ** rng.uniform(-0.5 - 7.5 * extremity, 0.5 + 5.5 * extremity, shape)
    if alike:
        mean = mean[:1] * (1 + 1e-6 * rng.normal(size=shape))
        var = var[:1] * (1 + 1e-6 * rng.normal(size=shape))
    pixels = (batch, *spatial)
    owner = rng.choice(components, size=pixels, p=tau / tau.sum())
    x = mean[owner] + rng.normal(size=(*pixels, channels)) * np.sqrt(var[owner]) * 10 ** rng.uniform(
        -1, 0.7, (*pixels, 1)
    )
    x = np.moveaxis(x, -1, 1).astype(np.float32)
    tables = {
        "tau": tau,
        "mean": mean,
        "var": var,
        "scale": rng.normal(size=shape),
        "bias": rng.normal(size=shape),
    }
    return Case(
        x=np.ascontiguousarray(x),
        residual=rng.normal(size=x.shape).astype(np.float32),
        tables={name: table.astype(np.float32) for name, table in tables.items()},
        epsilon=float(rng.choice([1e-5, 1e-3])),
        density_scale=float(rng.choice([1.0, channels**-0.5, 1 / channels])),
    )


def op_model(
    case: Case, form: OpForm, *, with_posterior: bool = True, dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """One node with its function; float32 in and out, cast to ``dtype`` around the node."""
    names = ("X", "residual") if form.residual else ("X",)
    axes = ["batch", case.x.shape[1], *case.x.shape[2:]]
    nodes = [helper.make_node("Cast", [name], [f"{name}_typed"], to=dtype) for name in names]
    outputs = ["Y_typed", "posterior"] if with_posterior else ["Y_typed"]
    nodes.append(
        helper.make_node(
            form.op_type,
            [*(f"{name}_typed" for name in names), *TABLES],
            outputs,
            domain=DOMAIN,
            name="layer",
            epsilon=case.epsilon,
            density_scale=case.density_scale,
        )
    )
    nodes.append(helper.make_node("Cast", ["Y_typed"], ["Y"], to=TensorProto.FLOAT))
    results = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, axes)]
    if with_posterior:
        shape = ["batch", len(case.tables["tau"]), *case.x.shape[2:]]
        results.append(helper.make_tensor_value_info("posterior", TensorProto.FLOAT, shape))
    graph = helper.make_graph(
        nodes,
        "one_node",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in names],
        results,
        [onnx.numpy_helper.from_array(table, name) for name, table in case.tables.items()],
    )
    return helper.make_model(
        graph,
        functions=[function_body(form, with_posterior=with_posterior)],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=IR_VERSION,
    )


def run_onnxruntime(model: onnx.ModelProto, feeds: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """All outputs, on one thread, with no library of ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.float32]] = session.run(None, feeds)
    return outputs
