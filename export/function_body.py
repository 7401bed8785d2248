"""The op's meaning in standard ONNX ops: the FunctionProto that lets an exported file run on any ONNX runtime.

The body works on one table per component instead of the (B, M, D, *spatial) tensor of the formula:

- Everything is measured from a shared reference Gaussian, the tau-weighted mean ``m0`` and variance ``v0``. A term
  common to all components cancels in the softmax, so subtracting the reference changes nothing in exact arithmetic; in
  float32 it keeps the tables small. ``1/v_j - 1/v0`` is computed as ``(var0 - var_j) / v_j / v0``: the difference of
  nearby floats is exact, so near-identical components cost no precision.
- With ``c = x - m0`` the logits are two small matrix products, ``P @ c^2 + Q @ c + k``, and the output is
  ``c * (A^T w) + B^T w``.
- Every line above "per input" depends on the tables alone, so a runtime folds it to constants when it loads the file.
"""

from __future__ import annotations

import onnx
import onnx.parser

from export.op import DEFAULT_DENSITY_SCALE, DEFAULT_EPSILON, DOMAIN, OpForm

__all__ = ["OPSET", "function_body"]

# Opset 18 is the lowest in which every op used here and by the exporter has its present form, hence the widest reader
# support: onnxruntime >= 1.14, OpenVINO >= 2023, TensorRT >= 8.6. Nothing in the model needs a later one.
OPSET = 18

_TABLES = """
    epsilon_value = Constant <value_float: float = @epsilon> ()
    s = Constant <value_float: float = @density_scale> ()
    minus_half = Constant <value_float: float = -0.5> ()
    zero = Constant <value_float: float = 0.0> ()
    one = Constant <value_float: float = 1.0> ()
    lowest = Constant <value_float: float = -3.4028234e38> ()
    component_axis = Constant <value_ints: ints = [0]> ()
    channel_axis = Constant <value_ints: ints = [1]> ()
    column = Constant <value_ints: ints = [-1, 1]> ()
    pixels_last = Constant <value_ints: ints = [0, 0, -1]> ()

    tau_M1 = Reshape (tau, column)
    tau_sum = ReduceSum <keepdims: int = 0> (tau)
    prior_M1 = Div (tau_M1, tau_sum)
    weighted_mean = Mul (prior_M1, mean)
    m0_1D = ReduceSum <keepdims: int = 1> (weighted_mean, component_axis)
    weighted_var = Mul (prior_M1, var)
    var0_1D = ReduceSum <keepdims: int = 1> (weighted_var, component_axis)
    v_MD = Add (var, epsilon_value)
    v0_1D = Add (var0_1D, epsilon_value)
    delta_MD = Sub (mean, m0_1D)

    minus_half_s = Mul (minus_half, s)
    var_difference = Sub (var0_1D, var)
    var_difference_over_v = Div (var_difference, v_MD)
    precision_difference = Div (var_difference_over_v, v0_1D)
    P_MD = Mul (precision_difference, minus_half_s)
    delta_over_v = Div (delta_MD, v_MD)
    Q_MD = Mul (delta_over_v, s)
    squared_distance = Mul (delta_over_v, delta_MD)
    volume_ratio = Div (v_MD, v0_1D)
    log_volume = Log (volume_ratio)
    per_channel = Add (squared_distance, log_volume)
    per_component = ReduceSum <keepdims: int = 1> (per_channel, channel_axis)
    constant_M1 = Mul (per_component, minus_half_s)
    alive = Greater (tau_M1, zero)
    positive_tau = Where (alive, tau_M1, one)
    log_positive_tau = Log (positive_tau)
    log_tau = Where (alive, log_positive_tau, lowest)
    k_M1 = Add (constant_M1, log_tau)

    deviation = Sqrt (v_MD)
    A_MD = Div (scale, deviation)
    A_delta = Mul (A_MD, delta_MD)
    B_MD = Sub (bias, A_delta)
    A_DM = Transpose <perm: ints = [1, 0]> (A_MD)
    B_DM = Transpose <perm: ints = [1, 0]> (B_MD)
    m0_D1 = Reshape (m0_1D, column)
"""

# The softmax is written out because runtimes transpose twice for a Softmax over a middle axis (onnxruntime 1.32 takes
# a third longer per layer at 16 x 32 x 32 with the Softmax op).
_PER_INPUT = """
    X_float = Cast <to: int = 1> (X)
    x_BDP = Reshape (X_float, pixels_last)
    c_BDP = Sub (x_BDP, m0_D1)
    c_squared = Mul (c_BDP, c_BDP)
    quadratic = MatMul (P_MD, c_squared)
    linear = MatMul (Q_MD, c_BDP)
    quadratic_linear = Add (quadratic, linear)
    logits_BMP = Add (quadratic_linear, k_M1)
    highest = ReduceMax <keepdims: int = 1> (logits_BMP, channel_axis)
    shifted = Sub (logits_BMP, highest)
    exponential = Exp (shifted)
    normaliser = ReduceSum <keepdims: int = 1> (exponential, channel_axis)
    w_BMP = Div (exponential, normaliser)
    gain = MatMul (A_DM, w_BMP)
    offset = MatMul (B_DM, w_BMP)
    scaled = Mul (c_BDP, gain)
    y_BDP = Add (scaled, offset)
    shape = Shape (X)
    normalised = Reshape (y_BDP, shape)
"""

_ADD = """
    residual_float = Cast <to: int = 1> (residual)
    added = Add (normalised, residual_float)
"""

_POSTERIOR = """
    batch = Shape <end: int = 1> (X)
    components = Shape (tau)
    spatial = Shape <start: int = 2> (X)
    posterior_shape = Concat <axis: int = 0> (batch, components, spatial)
    posterior = Reshape (w_BMP, posterior_shape)
"""


def function_body(form: OpForm, *, with_posterior: bool) -> onnx.FunctionProto:
    """The FunctionProto of ``form``.

    Args:
        form: which form of the op.
        with_posterior: give the function its second output. It must match the nodes: onnx's shape inference and
            TensorRT's parser refuse a node that names fewer outputs than its function.
    """
    lines, result = _TABLES + _PER_INPUT, "normalised"
    if form.residual:
        lines, result = lines + _ADD, "added"
    if form.relu:
        lines, result = lines + f"\n    activated = Relu ({result})\n", "activated"
    lines += f"\n    Y = CastLike ({result}, X)\n"
    if with_posterior:
        lines += _POSTERIOR
    attributes = f"epsilon: float = {DEFAULT_EPSILON:.8f}, density_scale: float = {DEFAULT_DENSITY_SCALE}"
    outputs = "Y, posterior" if with_posterior else "Y"
    return onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n'
        f"{form.op_type} <{attributes}> ({', '.join(form.inputs)}) => ({outputs})\n{{{lines}}}"
    )
