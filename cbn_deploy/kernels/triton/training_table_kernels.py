"""The table arithmetic of a training step as Triton kernels: (M, channels) numbers; a launch costs more than the work.

The equations are those of the plain torch tables (:mod:`cbn_deploy.kernels.training_steps`), in float32. All tensors
are contiguous. Programs of the passes over the pixels leave partial sums side by side; the kernels that need them add
them first, in the same order always: there are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cbn_deploy.kernels.triton.tables import log_ratio

__all__ = ["combination_kernel", "density_kernel", "gradient_tables_kernel", "learning_kernel", "moments_kernel"]


@triton.jit(do_not_specialize=["channels"])
def density_kernel(
    centre_ptr: tl.tensor,
    tau_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    channels: tl.tensor,
    epsilon: tl.tensor,
    density_scale: tl.tensor,
    quadratic_ptr: tl.tensor,
    linear_ptr: tl.tensor,
    constant_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Coefficients of the logits in c^2, c and 1. One program: the components' means and all channels meet in it."""
    j = tl.arange(0, BLOCK_M)
    real = j < COMPONENTS
    distance = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in tl.range(0, channels, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = real[:, None] & (d < channels)[None, :]
        at = j[:, None] * channels + d[None, :]
        centre = tl.load(centre_ptr + d, mask=d < channels, other=0.0)
        shifted = tl.load(mean_ptr + at, mask=inside, other=0.0) - centre[None, :]
        var = tl.load(var_ptr + at, mask=inside, other=0.0)
        reference = (tl.sum(var, axis=0) / COMPONENTS)[None, :]
        # Past the last component and channel, 1 instead of what could be a division by 0.
        v, v0 = tl.where(inside, var + epsilon, 1.0), tl.where(inside, reference + epsilon, 1.0)
        linear = tl.where(inside, shifted / v, 0.0)
        common = (tl.sum(linear, axis=0) / COMPONENTS)[None, :]
        difference = tl.where(inside, var - reference, 0.0)
        distance += linear * shifted + log_ratio(difference, v, v0)
        tl.store(quadratic_ptr + at, 0.5 * density_scale * (difference / v / v0), mask=inside)
        tl.store(linear_ptr + at, density_scale * (linear - common), mask=inside)
    constant = tl.where(real, tl.sum(distance, axis=1), 0.0)
    constant -= tl.sum(constant, axis=0) / COMPONENTS
    tau = tl.load(tau_ptr + j, mask=real, other=1.0)
    alive = tau > 0.0
    log_prior = tl.where(alive, tl.log(tl.where(alive, tau, 1.0)), float("-inf"))
    tl.store(constant_ptr + j, log_prior - 0.5 * density_scale * constant, mask=real)


@triton.jit
def summed(
    partial_ptr: tl.tensor,
    rows: tl.tensor,
    j: tl.tensor,
    d: tl.tensor,
    channels: tl.tensor,
    COMPONENTS: tl.constexpr,
    ROWS: tl.constexpr,
) -> tl.tuple:
    """Both sums of component j and channels ``d`` from (rows, M, 2, channels)."""
    BLOCK_D: tl.constexpr = d.shape[0]
    firsts = tl.zeros((ROWS, BLOCK_D), tl.float32)
    seconds = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in tl.range(0, rows, ROWS):
        i = start + tl.arange(0, ROWS)
        at = ((i * COMPONENTS + j) * 2 * channels)[:, None] + d[None, :]
        inside = (i < rows)[:, None] & (d < channels)[None, :]
        firsts += tl.load(partial_ptr + at, mask=inside, other=0.0)
        seconds += tl.load(partial_ptr + at + channels, mask=inside, other=0.0)
    return tl.sum(firsts, axis=0), tl.sum(seconds, axis=0)


@triton.jit(do_not_specialize=["rows", "mass_rows", "channels"])
def moments_kernel(
    partial_ptr: tl.tensor,
    partial_mass_ptr: tl.tensor,
    centre_ptr: tl.tensor,
    rows: tl.tensor,
    mass_rows: tl.tensor,
    channels: tl.tensor,
    mass_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    ROWS: tl.constexpr,
    MASS_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Mass, mean and biased variance from (rows, M, 2, channels) and (mass_rows, M). Grid (M, pieces of channels)."""
    j = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    i = tl.arange(0, MASS_ROWS)
    mass = tl.sum(tl.load(partial_mass_ptr + i * COMPONENTS + j, mask=i < mass_rows, other=0.0), axis=0)
    first, second = summed(partial_ptr, rows, j, d, channels, COMPONENTS, ROWS)
    # An empty component has mass 0 and sums 0; dividing by the tiny floor (the root of the smallest normal number)
    # gives 0 and not NaN. Comparisons, not maxima: NaN stays NaN.
    safe = tl.where(mass < 1.0842021724855044e-19, 1.0842021724855044e-19, mass)
    shift = first / safe
    var = second / safe - shift * shift
    centre = tl.load(centre_ptr + d, mask=d < channels, other=0.0)
    tl.store(mean_ptr + j * channels + d, centre + shift, mask=d < channels)
    # Rounding can leave a constant channel a variance just below zero.
    tl.store(var_ptr + j * channels + d, tl.where(var < 0.0, 0.0, var), mask=d < channels)
    if tl.program_id(1) == 0:
        tl.store(mass_ptr + j, mass)


@triton.jit(do_not_specialize=["channels", "count"])
def combination_kernel(
    centre_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    channels: tl.tensor,
    count: tl.tensor,
    epsilon: tl.tensor,
    gain_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """A = scale / sqrt(var + eps) and B = bias - A (mean - centre); ``count`` is M channels."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < count
    centre = tl.load(centre_ptr + n % channels, mask=inside, other=0.0)
    mean = tl.load(mean_ptr + n, mask=inside, other=0.0)
    var = tl.load(var_ptr + n, mask=inside, other=1.0)
    gain = tl.load(scale_ptr + n, mask=inside, other=0.0) * tl.rsqrt(var + epsilon)
    offset = tl.load(bias_ptr + n, mask=inside, other=0.0) - gain * (mean - centre)
    tl.store(gain_ptr + n, gain, mask=inside)
    tl.store(offset_ptr + n, offset, mask=inside)


@triton.jit(do_not_specialize=["rows", "channels"])
def gradient_tables_kernel(
    partial_ptr: tl.tensor,
    centre_ptr: tl.tensor,
    quadratic_ptr: tl.tensor,
    linear_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    inverse_mass_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    epsilon: tl.tensor,
    tables_ptr: tl.tensor,
    constant_ptr: tl.tensor,
    grad_scale_ptr: tl.tensor,
    grad_bias_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """From partial sums of w g and w g c all that the way back to x, scale and bias needs.

    ``tables`` (M, 6, channels) as the input gradient's kernel reads them, ``constant`` (M, pieces) to be added by it.
    Grid (M, pieces of channels); a piece may lie past the last channel, and then adds 0.
    """
    j = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = d < channels
    through_offset, through_gain = summed(partial_ptr, rows, j, d, channels, COMPONENTS, ROWS)
    at = j * channels + d
    centre = tl.load(centre_ptr + d, mask=inside, other=0.0)
    shift = tl.load(mean_ptr + at, mask=inside, other=0.0) - centre
    var = tl.load(var_ptr + at, mask=inside, other=1.0)
    scale = tl.load(scale_ptr + at, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + at, mask=inside, other=0.0)
    floored = var + epsilon
    inverse_deviation = tl.rsqrt(floored)
    through_scale = (through_gain - through_offset * shift) * inverse_deviation
    through_mean = -through_offset * scale * inverse_deviation
    through_var = -0.5 * through_scale * scale / floored
    share = tl.load(inverse_mass_ptr + j)
    # 0, and not 0 times infinity, where the moments are constants.
    used = share != 0.0
    curvature = tl.where(used, through_var * share, 0.0)
    slope = tl.where(used, (through_mean - 2.0 * through_var * shift) * share, 0.0)
    constant = tl.where(used, (through_var * (shift * shift - var) - through_mean * shift) * share, 0.0)
    gain = scale * inverse_deviation
    row = tables_ptr + 6 * j * channels + d
    tl.store(row, gain, mask=inside)
    tl.store(row + channels, bias - gain * shift, mask=inside)
    tl.store(row + 2 * channels, curvature, mask=inside)
    tl.store(row + 3 * channels, slope, mask=inside)
    tl.store(row + 4 * channels, 2.0 * tl.load(quadratic_ptr + at, mask=inside, other=0.0), mask=inside)
    tl.store(row + 5 * channels, tl.load(linear_ptr + at, mask=inside, other=0.0), mask=inside)
    tl.store(constant_ptr + j * tl.num_programs(1) + tl.program_id(1), tl.sum(constant, axis=0))
    tl.store(grad_scale_ptr + at, through_scale, mask=inside)
    tl.store(grad_bias_ptr + at, through_offset, mask=inside)


@triton.jit
def moved(old: tl.tensor, new: tl.tensor, momentum: tl.tensor) -> tl.tensor:
    """Moving average; ``momentum`` is the weight of the new value."""
    return old + momentum * (new - old)


@triton.jit
def finite(values: tl.tensor) -> tl.tensor:
    """Neither infinite nor NaN."""
    return tl.abs(values) < float("inf")


@triton.jit
def moved_priors(
    tau: tl.tensor, mass: tl.tensor, real: tl.tensor, momentum: tl.tensor, tau_floor: tl.tensor
) -> tl.tensor:
    """Eq. (13): the priors moved towards the masses' shares, floored, normalised."""
    share = mass / tl.sum(mass, axis=0)
    unusable = tl.sum(tl.where(finite(share), 0, 1), axis=0)
    tau = moved(tau, tl.where(unusable == 0, share, tau), momentum)
    tau = tl.where(tau < tau_floor, tau_floor, tau)
    return tau / tl.sum(tl.where(real, tau, 0.0), axis=0)


@triton.jit
def move_pair(
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    new_mean_ptr: tl.tensor,
    new_var_ptr: tl.tensor,
    at: tl.tensor,
    inside: tl.tensor,
    batch_mean: tl.tensor,
    unbiased: tl.tensor,
    usable: tl.tensor,
    momentum: tl.tensor,
) -> tl.tuple:
    """Eq. (14) and (15) into new tensors where ``usable``, else a copy; returns the old mean and variance."""
    mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
    var = tl.load(var_ptr + at, mask=inside, other=0.0)
    tl.store(new_mean_ptr + at, tl.where(usable, moved(mean, batch_mean, momentum), mean), mask=inside)
    tl.store(new_var_ptr + at, tl.where(usable, moved(var, unbiased, momentum), var), mask=inside)
    return mean, var


@triton.jit(do_not_specialize=["channels"])
def learning_kernel(
    mass_ptr: tl.tensor,
    batch_mean_ptr: tl.tensor,
    batch_var_ptr: tl.tensor,
    tau_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    own_mean_ptr: tl.tensor,
    own_var_ptr: tl.tensor,
    batches_ptr: tl.tensor,
    channels: tl.tensor,
    momentum: tl.tensor,
    least_mass: tl.tensor,
    tau_floor: tl.tensor,
    used_mean_ptr: tl.tensor,
    used_var_ptr: tl.tensor,
    inverse_mass_ptr: tl.tensor,
    new_tau_ptr: tl.tensor,
    new_mean_ptr: tl.tensor,
    new_var_ptr: tl.tensor,
    new_own_mean_ptr: tl.tensor,
    new_own_var_ptr: tl.tensor,
    new_batches_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPDATE_TAU: tl.constexpr,
    OWN: tl.constexpr,
) -> None:
    """One of M programs: what normalises the batch and what it leaves behind, of component j; program 0 the priors."""
    j = tl.program_id(0)
    mass = tl.load(mass_ptr + j)
    enough = mass >= least_mass  # not for NaN
    unusable = tl.zeros((BLOCK_D,), tl.int32)
    for start in tl.range(0, channels, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        batch_mean = tl.load(batch_mean_ptr + j * channels + d, mask=d < channels, other=0.0)
        batch_var = tl.load(batch_var_ptr + j * channels + d, mask=d < channels, other=0.0)
        unusable += tl.where(finite(batch_mean) & finite(batch_var), 0, 1)
    usable = enough & (tl.sum(unusable, axis=0) == 0)
    bessel = mass / tl.where(mass - 1.0 < 1.0, 1.0, mass - 1.0)
    for start in tl.range(0, channels, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside, at = d < channels, j * channels + d
        batch_mean = tl.load(batch_mean_ptr + at, mask=inside, other=0.0)
        batch_var = tl.load(batch_var_ptr + at, mask=inside, other=0.0)
        unbiased = batch_var * bessel
        mean, var = move_pair(
            mean_ptr, var_ptr, new_mean_ptr, new_var_ptr, at, inside, batch_mean, unbiased, usable, momentum
        )
        if OWN:
            move_pair(
                own_mean_ptr,
                own_var_ptr,
                new_own_mean_ptr,
                new_own_var_ptr,
                at,
                inside,
                batch_mean,
                unbiased,
                usable,
                momentum,
            )
        tl.store(used_mean_ptr + at, tl.where(enough, batch_mean, mean), mask=inside)
        tl.store(used_var_ptr + at, tl.where(enough, batch_var, var), mask=inside)
    tl.store(inverse_mass_ptr + j, tl.where(enough, 1.0 / tl.where(enough, mass, 1.0), 0.0))
    i = tl.arange(0, BLOCK_M)
    real = i < COMPONENTS
    tau = tl.load(tau_ptr + i, mask=real, other=0.0)
    if UPDATE_TAU:
        masses = tl.load(mass_ptr + i, mask=real, other=0.0)
        tau = moved_priors(tau, masses, real, momentum, tau_floor)
    if j == 0:
        tl.store(new_tau_ptr + i, tau, mask=real)
        tl.store(new_batches_ptr, tl.load(batches_ptr) + 1)
