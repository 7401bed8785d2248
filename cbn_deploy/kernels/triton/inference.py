"""The frozen layer as one Triton kernel: every pixel is read once where its channels fit in registers, else twice.

A program takes BLOCK_P pixels with all their channels, in CHUNKS pieces of BLOCK_D channels. With c = x - m0 and the
tables of :mod:`cbn_deploy.kernels.triton.tables`,

    l_j = sum_d c_d (P_jd c_d + Q_jd) + k_j,   w = 2^l / sum 2^l,   y_d = c_d sum_j w_j A_jd + sum_j w_j B_jd

(P, Q and k carry the factor 1/log 2, so that the exponential is one instruction).

Components are Python tuples of tensors, unrolled: a component needs no power of two and no cross-lane exchange but the
sum over its channels. All arithmetic is float32; there is no matrix instruction, hence no TF32.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["SIZES", "forward_kernel"]

# One compilation for every size: what the compiler may assume of them is said by VECTOR and FULL.
SIZES = ["pixel_count", "channels", "pixels"]


@triton.jit
def pixel_offsets(n: tl.tensor, channels: tl.tensor, pixels: tl.tensor, CHANNELS_LAST: tl.constexpr) -> tl.tensor:
    """Where pixel ``n`` of the batch begins: the address of its channel 0."""
    if CHANNELS_LAST:
        return n.to(tl.int64) * channels
    return (n // pixels).to(tl.int64) * channels * pixels + n % pixels


@triton.jit
def channel_offsets(d: tl.tensor, pixels: tl.tensor, CHANNELS_LAST: tl.constexpr) -> tl.tensor:
    """How far channel ``d`` of a pixel lies from its channel 0."""
    if CHANNELS_LAST:
        return d.to(tl.int64)
    return d.to(tl.int64) * pixels


@triton.jit
def table_row(
    tables_ptr: tl.tensor, row: tl.constexpr, d: tl.tensor, channels: tl.tensor, FULL: tl.constexpr
) -> tl.tensor:
    """Channels ``d`` of one row of the tables, as a column; 0 past the last channel."""
    if FULL:
        return tl.load(tables_ptr + row * channels + d)[:, None]
    return tl.load(tables_ptr + row * channels + d, mask=d < channels, other=0.0)[:, None]


@triton.jit
def constant(tables_ptr: tl.tensor, j: tl.constexpr, channels: tl.tensor, COMPONENTS: tl.constexpr) -> tl.tensor:
    """k_j, a scalar."""
    return tl.load(tables_ptr + (1 + 4 * COMPONENTS) * channels + j)


@triton.jit
def centred(
    x_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    d: tl.tensor,
    base: tl.tensor,
    inside: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    FULL: tl.constexpr,
) -> tl.tensor:
    """c = x - m0 of one piece, (BLOCK_D, BLOCK_P) float32; 0 past the last channel, anything past the last pixel."""
    pointers = x_ptr + (channel_offsets(d, pixels, CHANNELS_LAST)[:, None] + base[None, :])
    if FULL:
        x = tl.load(pointers, mask=inside[None, :])
    else:
        x = tl.load(pointers, mask=(d < channels)[:, None] & inside[None, :], other=0.0)
    return x.to(tl.float32) - table_row(tables_ptr, 0, d, channels, FULL)


@triton.jit
def add_quadratics(
    sums: tl.tuple,
    c: tl.tensor,
    tables_ptr: tl.tensor,
    d: tl.tensor,
    channels: tl.tensor,
    COMPONENTS: tl.constexpr,
    FULL: tl.constexpr,
) -> tl.tuple:
    """Add c (P_j c + Q_j) of one piece to the running sums, channel by channel."""
    result: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        P = table_row(tables_ptr, 1 + 4 * j, d, channels, FULL)
        Q = table_row(tables_ptr, 2 + 4 * j, d, channels, FULL)
        result = result + (tl.fma(c, tl.fma(P, c, Q), sums[j]),)
    return result


@triton.jit
def log_densities(sums: tl.tuple, tables_ptr: tl.tensor, channels: tl.tensor, COMPONENTS: tl.constexpr) -> tl.tuple:
    """The logits (BLOCK_P,) of every component, to base 2, from their sums over the channels of a thread."""
    logits: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        logits = logits + (tl.sum(sums[j], axis=0) + constant(tables_ptr, j, channels, COMPONENTS),)
    return logits


@triton.jit
def softmax(logits: tl.tuple, COMPONENTS: tl.constexpr) -> tl.tuple:
    """The posteriors (BLOCK_P,) of every component from logits to base 2."""
    highest = logits[0]
    for j in tl.static_range(1, COMPONENTS):
        highest = tl.maximum(highest, logits[j])
    exponentials: tl.tuple = ()
    total = tl.zeros_like(highest)
    for j in tl.static_range(COMPONENTS):
        exponential = tl.exp2(logits[j] - highest)
        exponentials = exponentials + (exponential,)
        total += exponential
    inverse = 1.0 / total
    weights: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        weights = weights + (exponentials[j] * inverse,)
    return weights


@triton.jit
def combined(
    c: tl.tensor,
    weights: tl.tuple,
    tables_ptr: tl.tensor,
    d: tl.tensor,
    channels: tl.tensor,
    COMPONENTS: tl.constexpr,
    FULL: tl.constexpr,
) -> tl.tensor:
    """y = c sum_j w_j A_j + sum_j w_j B_j of one piece."""
    gain = weights[0][None, :] * table_row(tables_ptr, 3, d, channels, FULL)
    offset = weights[0][None, :] * table_row(tables_ptr, 4, d, channels, FULL)
    for j in tl.static_range(1, COMPONENTS):
        gain = tl.fma(weights[j][None, :], table_row(tables_ptr, 3 + 4 * j, d, channels, FULL), gain)
        offset = tl.fma(weights[j][None, :], table_row(tables_ptr, 4 + 4 * j, d, channels, FULL), offset)
    return tl.fma(c, gain, offset)


@triton.jit
def write_piece(
    y: tl.tensor,
    residual_ptr: tl.tensor,
    y_ptr: tl.tensor,
    d: tl.tensor,
    base: tl.tensor,
    inside: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    FULL: tl.constexpr,
) -> None:
    """Add the residual, activate, round once and store one piece."""
    mask = inside[None, :] if FULL else (d < channels)[:, None] & inside[None, :]
    offsets = channel_offsets(d, pixels, CHANNELS_LAST)[:, None] + base[None, :]
    if RESIDUAL:
        y += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def zero_sums(COMPONENTS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr) -> tl.tuple:
    """One (BLOCK_D, BLOCK_P) tensor of zeros a component."""
    sums: tl.tuple = ()
    for _ in tl.static_range(COMPONENTS):
        sums = sums + (tl.zeros((BLOCK_D, BLOCK_P), tl.float32),)
    return sums


@triton.jit
def write_posterior(
    weights: tl.tuple,
    posterior_ptr: tl.tensor,
    n: tl.tensor,
    inside: tl.tensor,
    pixels: tl.tensor,
    COMPONENTS: tl.constexpr,
) -> None:
    """Store w as (images, M, pixels)."""
    image = (n // pixels).to(tl.int64)
    for j in tl.static_range(COMPONENTS):
        tl.store(posterior_ptr + ((image * COMPONENTS + j) * pixels + n % pixels), weights[j], mask=inside)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    pixel_count: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    y_ptr: tl.tensor,
    posterior_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    POSTERIOR: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNKS: tl.constexpr,
    RESIDENT: tl.constexpr,
    FULL: tl.constexpr,
) -> None:
    """One of ceil(pixel_count / BLOCK_P) programs; ``pixel_count`` = images * ``pixels``.

    VECTOR divides the extent of the contiguous axis (``pixels``, or ``channels`` with CHANNELS_LAST). RESIDENT keeps
    all CHUNKS pieces in registers between the two sums; otherwise they are read again. FULL
    promises channels = CHUNKS * BLOCK_D.
    """
    # A multiple of VECTOR in the compiler's eyes as well: that is what lets it load vectors.
    if CHANNELS_LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
        pixel_count = pixel_count // VECTOR * VECTOR
    n = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = n < pixel_count
    base = pixel_offsets(n, channels, pixels, CHANNELS_LAST)
    block = tl.arange(0, BLOCK_D)
    sums = zero_sums(COMPONENTS, BLOCK_D, BLOCK_P)
    if RESIDENT:
        pieces: tl.tuple = ()
        for chunk in tl.static_range(CHUNKS):
            d = chunk * BLOCK_D + block
            pieces = pieces + (centred(x_ptr, tables_ptr, d, base, inside, channels, pixels, CHANNELS_LAST, FULL),)
        for chunk in tl.static_range(CHUNKS):
            sums = add_quadratics(sums, pieces[chunk], tables_ptr, chunk * BLOCK_D + block, channels, COMPONENTS, FULL)
    else:
        for chunk in tl.range(CHUNKS):
            d = chunk * BLOCK_D + block
            c = centred(x_ptr, tables_ptr, d, base, inside, channels, pixels, CHANNELS_LAST, FULL)
            sums = add_quadratics(sums, c, tables_ptr, d, channels, COMPONENTS, FULL)
    weights = softmax(log_densities(sums, tables_ptr, channels, COMPONENTS), COMPONENTS)
    if POSTERIOR:
        write_posterior(weights, posterior_ptr, n, inside, pixels, COMPONENTS)
    if RESIDENT:
        for chunk in tl.static_range(CHUNKS):
            d = chunk * BLOCK_D + block
            y = combined(pieces[chunk], weights, tables_ptr, d, channels, COMPONENTS, FULL)
            write_piece(y, residual_ptr, y_ptr, d, base, inside, channels, pixels, CHANNELS_LAST, RESIDUAL, RELU, FULL)
    else:
        for chunk in tl.range(CHUNKS):
            d = chunk * BLOCK_D + block
            c = centred(x_ptr, tables_ptr, d, base, inside, channels, pixels, CHANNELS_LAST, FULL)
            y = combined(c, weights, tables_ptr, d, channels, COMPONENTS, FULL)
            write_piece(y, residual_ptr, y_ptr, d, base, inside, channels, pixels, CHANNELS_LAST, RESIDUAL, RELU, FULL)
