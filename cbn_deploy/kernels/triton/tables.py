"""The tables that the kernels read, made from the layer's statistics by one small Triton kernel.

With v_j = var_j + eps, m0 and var0 the tau-weighted means of the means and of the variances, v0 = var0 + eps and
delta_j = mean_j - m0 (docs/op.md),

    P_j = -s/2 (1/v_j - 1/v0)     A_j = scale_j / sqrt(v_j)
    Q_j = s delta_j / v_j         B_j = bias_j - A_j delta_j
    k_j = log tau_j - s/2 sum_d [delta_j^2 / v_j + log(v_j / v0)]

in one float32 array: row 0 is m0, rows 1+4j to 4+4j are P_j, Q_j, A_j, B_j (D numbers each), then the M numbers k_j.
P, Q and k are divided by log 2. A dead component (tau_j = 0) has rows of zeros and k_j = -inf.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["tables_kernel"]


@triton.jit
def log_ratio(difference: tl.tensor, v: tl.tensor, v0: tl.tensor) -> tl.tensor:
    """log(v / v0) to a few units in the last place, also where the ratio is near 1; ``difference`` is v - v0."""
    # The fast logarithm is right to an absolute 1e-7 only: near 1 use 2 artanh(z), z = r / (2 + r), as its series.
    r = difference / v0
    near = tl.abs(r) < 0.5
    r = tl.where(near, r, 0.0)
    z = r / (2.0 + r)
    q = z * z
    series = 1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + q * (1.0 / 11 + q * (1.0 / 13))))))
    return tl.where(near, 2.0 * z * series, tl.log(v / v0))


@triton.jit
def reference_gaussian(
    tau_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    d: tl.tensor,
    inside: tl.tensor,
    channels: tl.tensor,
    COMPONENTS: tl.constexpr,
) -> tl.tuple:
    """m0 and var0 of channels ``d``."""
    total = 0.0
    for i in tl.static_range(COMPONENTS):
        total += tl.load(tau_ptr + i)
    m0 = tl.zeros_like(d).to(tl.float32)
    var0 = m0
    for i in tl.static_range(COMPONENTS):
        prior = tl.load(tau_ptr + i) / total
        m0 += prior * tl.load(mean_ptr + i * channels + d, mask=inside, other=0.0)
        var0 += prior * tl.load(var_ptr + i * channels + d, mask=inside, other=1.0)
    return m0, var0


@triton.jit(do_not_specialize=["channels"])
def tables_kernel(
    tau_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    channels: tl.tensor,
    epsilon: tl.tensor,
    density_scale: tl.tensor,
    tables_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One of M programs; program j writes the rows of component j, program 0 also m0."""
    j = tl.program_id(0)
    tau = tl.load(tau_ptr + j)
    alive = tau > 0.0
    row = tables_ptr + (1 + 4 * j) * channels
    half = 0.5 * density_scale
    per_channel = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, channels, BLOCK):
        d = start + tl.arange(0, BLOCK)
        inside = d < channels
        m0, var0 = reference_gaussian(tau_ptr, mean_ptr, var_ptr, d, inside, channels, COMPONENTS)
        var = tl.load(var_ptr + j * channels + d, mask=inside, other=1.0)
        delta = tl.load(mean_ptr + j * channels + d, mask=inside, other=0.0) - m0
        scale = tl.load(scale_ptr + j * channels + d, mask=inside, other=0.0)
        bias = tl.load(bias_ptr + j * channels + d, mask=inside, other=0.0)
        v, v0 = var + epsilon, var0 + epsilon
        delta_over_v = delta / v
        gain = scale / tl.sqrt(v)
        # 1 / log 2 = 1.4426950408889634
        P = -1.4426950408889634 * half * ((var0 - var) / v / v0)
        Q = 1.4426950408889634 * density_scale * delta_over_v
        per_channel += tl.where(inside, delta_over_v * delta + log_ratio(var - var0, v, v0), 0.0)
        tl.store(row + d, tl.where(alive, P, 0.0), mask=inside)
        tl.store(row + channels + d, tl.where(alive, Q, 0.0), mask=inside)
        tl.store(row + 2 * channels + d, tl.where(alive, gain, 0.0), mask=inside)
        tl.store(row + 3 * channels + d, tl.where(alive, bias - gain * delta, 0.0), mask=inside)
        if j == 0:
            tl.store(tables_ptr + d, m0, mask=inside)
    log_tau = tl.log(tl.where(alive, tau, 1.0))
    k = 1.4426950408889634 * (log_tau - half * tl.sum(per_channel, axis=0))
    tl.store(tables_ptr + (1 + 4 * COMPONENTS) * channels + j, tl.where(alive, k, float("-inf")))
