"""The passes of a training step over the pixels, as Triton kernels.

x, the gradient g of y and the results are (images, channels, pixels), float32, float16 or bfloat16, and dense: their
pixels are contiguous, or with CHANNELS_LAST their channels. Posteriors w are (images, M, pixels) and tables
(M, channels), contiguous, float32. c = x - centre. All arithmetic is float32.
Sums over pixels are made without atomics: every program writes its own, the caller adds them, in the same order always.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cbn_deploy.kernels.triton.inference import SIZES, channel_offsets, pixel_offsets, softmax, write_posterior

__all__ = ["combine_kernel", "expectation_kernel", "input_gradient_kernel", "weighted_sums_kernel"]


@triton.jit
def row(table_ptr: tl.tensor, j: tl.constexpr, d: tl.tensor, channels: tl.tensor) -> tl.tensor:
    """Channels ``d`` of row j of a table, as a column; 0 past the last channel."""
    return tl.load(table_ptr + j * channels + d, mask=d < channels, other=0.0)[:, None]


@triton.jit
def values(
    ptr: tl.tensor,
    d: tl.tensor,
    base: tl.tensor,
    inside: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
) -> tl.tensor:
    """A (BLOCK_D, BLOCK_P) piece of x or g in float32; 0 outside."""
    offsets = channel_offsets(d, pixels, CHANNELS_LAST)[:, None] + base[None, :]
    return tl.load(ptr + offsets, mask=(d < channels)[:, None] & inside[None, :], other=0.0).to(tl.float32)


@triton.jit
def write(
    result: tl.tensor,
    ptr: tl.tensor,
    d: tl.tensor,
    base: tl.tensor,
    inside: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
) -> None:
    """Round once and store a piece."""
    offsets = channel_offsets(d, pixels, CHANNELS_LAST)[:, None] + base[None, :]
    mask = (d < channels)[:, None] & inside[None, :]
    tl.store(ptr + offsets, result.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def read_posterior(
    w_ptr: tl.tensor, n: tl.tensor, inside: tl.tensor, pixels: tl.tensor, COMPONENTS: tl.constexpr
) -> tl.tuple:
    """w of pixels ``n``, one (BLOCK_P,) tensor a component; 0 past the last pixel."""
    base = (n // pixels).to(tl.int64) * COMPONENTS * pixels + n % pixels
    weights: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        weights = weights + (tl.load(w_ptr + base + j * pixels, mask=inside, other=0.0),)
    return weights


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> tl.tuple:
    """``COUNT`` accumulators."""
    result: tl.tuple = ()
    for _ in tl.static_range(COUNT):
        result = result + (tl.zeros((ROWS, COLUMNS), tl.float32),)
    return result


@triton.jit
def accumulate(
    sums: tl.tuple, weights: tl.tuple, a: tl.tensor, b: tl.tensor, COMPONENTS: tl.constexpr, FOLD: tl.constexpr
) -> tl.tuple:
    """Add w_j a and w_j a b to the sums 2j and 2j + 1; FOLD neighbouring pixels, which one thread holds, at once."""
    BLOCK_D: tl.constexpr = a.shape[0]
    BLOCK_P: tl.constexpr = a.shape[1]
    result: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        first = weights[j][None, :] * a
        second = first * b
        first = tl.sum(tl.reshape(first, (BLOCK_D, BLOCK_P // FOLD, FOLD)), axis=2)
        second = tl.sum(tl.reshape(second, (BLOCK_D, BLOCK_P // FOLD, FOLD)), axis=2)
        result = result + (sums[2 * j] + first, sums[2 * j + 1] + second)
    return result


@triton.jit
def write_sums(
    sums: tl.tuple,
    partial_ptr: tl.tensor,
    program: tl.tensor,
    d: tl.tensor,
    channels: tl.tensor,
    COMPONENTS: tl.constexpr,
) -> None:
    """Store a program's sums: (programs, M, 2, channels)."""
    for i in tl.static_range(2 * COMPONENTS):
        target = partial_ptr + (program.to(tl.int64) * 2 * COMPONENTS + i) * channels + d
        tl.store(target, tl.sum(sums[i], axis=1), mask=d < channels)


@triton.jit(do_not_specialize=SIZES)
def expectation_kernel(
    x_ptr: tl.tensor,
    centre_ptr: tl.tensor,
    quadratic_ptr: tl.tensor,
    linear_ptr: tl.tensor,
    constant_ptr: tl.tensor,
    pixel_count: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    w_ptr: tl.tensor,
    mass_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNKS: tl.constexpr,
    FOLD: tl.constexpr,
    MOMENTS: tl.constexpr,
) -> None:
    """w = softmax_j(sum_d (quadratic_jd c_d + linear_jd) c_d + constant_j) and, in the same pass, its sums.

    A program takes every num_programs-th block of pixels. With MOMENTS all channels lie in one piece, and the program's
    sums go to ``mass_ptr`` (programs, M) and ``partial_ptr`` (programs, M, 2, channels); without, only its masses.
    """
    # As in the inference kernel: what lets the compiler load vectors.
    if CHANNELS_LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
        pixel_count = pixel_count // VECTOR * VECTOR
    program, step = tl.program_id(0), tl.num_programs(0) * BLOCK_P
    block = tl.arange(0, BLOCK_D)
    masses = zeros(COMPONENTS, 1, BLOCK_P)
    sums = zeros(2 * COMPONENTS if MOMENTS else 0, BLOCK_D, BLOCK_P // FOLD)
    for start in tl.range(program * BLOCK_P, pixel_count, step):
        n = start + tl.arange(0, BLOCK_P)
        inside = n < pixel_count
        base = pixel_offsets(n, channels, pixels, CHANNELS_LAST)
        if MOMENTS:
            c = values(x_ptr, block, base, inside, channels, pixels, CHANNELS_LAST) - row(
                centre_ptr, 0, block, channels
            )
            terms = quadratic_terms(
                zeros(COMPONENTS, BLOCK_D, BLOCK_P), c, quadratic_ptr, linear_ptr, block, channels, COMPONENTS
            )
        else:
            terms = zeros(COMPONENTS, BLOCK_D, BLOCK_P)
            for chunk in tl.range(CHUNKS):
                d = chunk * BLOCK_D + block
                c = values(x_ptr, d, base, inside, channels, pixels, CHANNELS_LAST) - row(centre_ptr, 0, d, channels)
                terms = quadratic_terms(terms, c, quadratic_ptr, linear_ptr, d, channels, COMPONENTS)
        weights = inside_only(softmax(logits_of(terms, constant_ptr, COMPONENTS), COMPONENTS), inside, COMPONENTS)
        write_posterior(weights, w_ptr, n, inside, pixels, COMPONENTS)
        masses = add_masses(masses, weights, COMPONENTS)
        if MOMENTS:
            sums = accumulate(sums, weights, c, c, COMPONENTS, FOLD)
    for j in tl.static_range(COMPONENTS):
        tl.store(mass_ptr + program * COMPONENTS + j, tl.sum(masses[j]))
    if MOMENTS:
        write_sums(sums, partial_ptr, program, block, channels, COMPONENTS)


@triton.jit
def quadratic_terms(
    terms: tl.tuple,
    c: tl.tensor,
    quadratic_ptr: tl.tensor,
    linear_ptr: tl.tensor,
    d: tl.tensor,
    channels: tl.tensor,
    COMPONENTS: tl.constexpr,
) -> tl.tuple:
    """Add c (quadratic_j c + linear_j) of one piece, channel by channel."""
    result: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        slope = tl.fma(row(quadratic_ptr, j, d, channels), c, row(linear_ptr, j, d, channels))
        result = result + (tl.fma(c, slope, terms[j]),)
    return result


@triton.jit
def logits_of(terms: tl.tuple, constant_ptr: tl.tensor, COMPONENTS: tl.constexpr) -> tl.tuple:
    """Logits to base 2 from their terms by channel and the constants."""
    logits: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        logit = tl.sum(terms[j], axis=0) + tl.load(constant_ptr + j)
        logits = logits + (logit * 1.4426950408889634,)  # 1 / log 2
    return logits


@triton.jit
def inside_only(weights: tl.tuple, inside: tl.tensor, COMPONENTS: tl.constexpr) -> tl.tuple:
    """w, but 0 past the last pixel."""
    result: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        result = result + (tl.where(inside, weights[j], 0.0),)
    return result


@triton.jit
def add_masses(masses: tl.tuple, weights: tl.tuple, COMPONENTS: tl.constexpr) -> tl.tuple:
    """Add w to the masses, pixel by pixel of a block."""
    result: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        result = result + (masses[j] + weights[j][None, :],)
    return result


@triton.jit(do_not_specialize=SIZES)
def weighted_sums_kernel(
    a_ptr: tl.tensor,
    x_ptr: tl.tensor,
    centre_ptr: tl.tensor,
    w_ptr: tl.tensor,
    pixel_count: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    partial_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FOLD: tl.constexpr,
    GRADIENT: tl.constexpr,
) -> None:
    """Sums over pixels of w a and w a c; a is g with GRADIENT, else c. Grid (splits of pixels, blocks of channels)."""
    # As in the inference kernel: what lets the compiler load vectors.
    if CHANNELS_LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
        pixel_count = pixel_count // VECTOR * VECTOR
    split, step = tl.program_id(0), tl.num_programs(0) * BLOCK_P
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    centre = row(centre_ptr, 0, d, channels)
    sums = zeros(2 * COMPONENTS, BLOCK_D, BLOCK_P // FOLD)
    for start in tl.range(split * BLOCK_P, pixel_count, step):
        n = start + tl.arange(0, BLOCK_P)
        inside = n < pixel_count
        base = pixel_offsets(n, channels, pixels, CHANNELS_LAST)
        weights = read_posterior(w_ptr, n, inside, pixels, COMPONENTS)
        c = values(x_ptr, d, base, inside, channels, pixels, CHANNELS_LAST) - centre
        a = values(a_ptr, d, base, inside, channels, pixels, CHANNELS_LAST) if GRADIENT else c
        sums = accumulate(sums, weights, a, c, COMPONENTS, FOLD)
    write_sums(sums, partial_ptr, split, d, channels, COMPONENTS)


@triton.jit(do_not_specialize=SIZES)
def combine_kernel(
    x_ptr: tl.tensor,
    centre_ptr: tl.tensor,
    w_ptr: tl.tensor,
    gain_ptr: tl.tensor,
    offset_ptr: tl.tensor,
    pixel_count: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    y_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    """y = c sum_j w_j gain_j + sum_j w_j offset_j. Grid (blocks of pixels, blocks of channels)."""
    # As in the inference kernel: what lets the compiler load vectors.
    if CHANNELS_LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
        pixel_count = pixel_count // VECTOR * VECTOR
    n = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = n < pixel_count
    base = pixel_offsets(n, channels, pixels, CHANNELS_LAST)
    c = values(x_ptr, d, base, inside, channels, pixels, CHANNELS_LAST) - row(centre_ptr, 0, d, channels)
    weights = read_posterior(w_ptr, n, inside, pixels, COMPONENTS)
    gain = tl.zeros((BLOCK_D, BLOCK_P), tl.float32)
    offset = tl.zeros((BLOCK_D, BLOCK_P), tl.float32)
    for j in tl.static_range(COMPONENTS):
        gain = tl.fma(weights[j][None, :], row(gain_ptr, j, d, channels), gain)
        offset = tl.fma(weights[j][None, :], row(offset_ptr, j, d, channels), offset)
    write(tl.fma(c, gain, offset), y_ptr, d, base, inside, channels, pixels, CHANNELS_LAST)


@triton.jit
def worth_terms(
    terms: tl.tuple,
    c: tl.tensor,
    g: tl.tensor,
    tables_ptr: tl.tensor,
    d: tl.tensor,
    channels: tl.tensor,
    COMPONENTS: tl.constexpr,
) -> tl.tuple:
    """Add (gain_j g + curvature_j c + slope_j) c + offset_j g of one piece, channel by channel."""
    result: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        inner = tl.fma(row(tables_ptr, 6 * j + 2, d, channels), c, row(tables_ptr, 6 * j + 3, d, channels))
        inner = tl.fma(row(tables_ptr, 6 * j, d, channels), g, inner)
        term = tl.fma(row(tables_ptr, 6 * j + 1, d, channels), g, terms[j])
        result = result + (tl.fma(inner, c, term),)
    return result


@triton.jit
def logit_gradients(
    terms: tl.tuple, weights: tl.tuple, constant_ptr: tl.tensor, COMPONENTS: tl.constexpr, PIECES: tl.constexpr
) -> tl.tuple:
    """h_j = w_j (G_j - sum_k w_k G_k)."""
    piece = tl.arange(0, PIECES)
    worth: tl.tuple = ()
    average = tl.zeros_like(weights[0])
    for j in tl.static_range(COMPONENTS):
        one = tl.sum(terms[j], axis=0) + tl.sum(tl.load(constant_ptr + j * PIECES + piece), axis=0)
        worth = worth + (one,)
        average = tl.fma(weights[j], one, average)
    result: tl.tuple = ()
    for j in tl.static_range(COMPONENTS):
        result = result + (weights[j] * (worth[j] - average),)
    return result


@triton.jit
def pixel_gradient(
    c: tl.tensor,
    g: tl.tensor,
    weights: tl.tuple,
    logits: tl.tuple,
    tables_ptr: tl.tensor,
    d: tl.tensor,
    channels: tl.tensor,
    COMPONENTS: tl.constexpr,
) -> tl.tensor:
    """sum_j gain_j w_j g + sum_j (2 curvature_j w_j + quadratic_j h_j) c + sum_j (slope_j w_j + linear_j h_j)."""
    of_g, of_c, alone = tl.zeros_like(c), tl.zeros_like(c), tl.zeros_like(c)
    for j in tl.static_range(COMPONENTS):
        w, h = weights[j][None, :], logits[j][None, :]
        of_g = tl.fma(w, row(tables_ptr, 6 * j, d, channels), of_g)
        of_c = tl.fma(w, 2.0 * row(tables_ptr, 6 * j + 2, d, channels), of_c)
        of_c = tl.fma(h, row(tables_ptr, 6 * j + 4, d, channels), of_c)
        alone = tl.fma(w, row(tables_ptr, 6 * j + 3, d, channels), alone)
        alone = tl.fma(h, row(tables_ptr, 6 * j + 5, d, channels), alone)
    return tl.fma(of_g, g, tl.fma(of_c, c, alone))


@triton.jit(do_not_specialize=SIZES)
def input_gradient_kernel(
    g_ptr: tl.tensor,
    x_ptr: tl.tensor,
    centre_ptr: tl.tensor,
    w_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    constant_ptr: tl.tensor,
    pixel_count: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    result_ptr: tl.tensor,
    COMPONENTS: tl.constexpr,
    PIECES: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> None:
    """Gradient of x. ``tables`` is (M, 6, channels): gain, offset, curvature, slope, quadratic, linear.

    ``constant`` is (M, PIECES), the constants in pieces.
    One piece of all channels is read once; with more CHUNKS the pieces are read twice.
    """
    # As in the inference kernel: what lets the compiler load vectors.
    if CHANNELS_LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
        pixel_count = pixel_count // VECTOR * VECTOR
    n = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = n < pixel_count
    base = pixel_offsets(n, channels, pixels, CHANNELS_LAST)
    block = tl.arange(0, BLOCK_D)
    weights = read_posterior(w_ptr, n, inside, pixels, COMPONENTS)
    terms = zeros(COMPONENTS, BLOCK_D, BLOCK_P)
    if CHUNKS == 1:
        c = values(x_ptr, block, base, inside, channels, pixels, CHANNELS_LAST) - row(centre_ptr, 0, block, channels)
        g = values(g_ptr, block, base, inside, channels, pixels, CHANNELS_LAST)
        terms = worth_terms(terms, c, g, tables_ptr, block, channels, COMPONENTS)
        logits = logit_gradients(terms, weights, constant_ptr, COMPONENTS, PIECES)
        result = pixel_gradient(c, g, weights, logits, tables_ptr, block, channels, COMPONENTS)
        write(result, result_ptr, block, base, inside, channels, pixels, CHANNELS_LAST)
    else:
        for chunk in tl.range(CHUNKS):
            d = chunk * BLOCK_D + block
            c = values(x_ptr, d, base, inside, channels, pixels, CHANNELS_LAST) - row(centre_ptr, 0, d, channels)
            g = values(g_ptr, d, base, inside, channels, pixels, CHANNELS_LAST)
            terms = worth_terms(terms, c, g, tables_ptr, d, channels, COMPONENTS)
        logits = logit_gradients(terms, weights, constant_ptr, COMPONENTS, PIECES)
        for chunk in tl.range(CHUNKS):
            d = chunk * BLOCK_D + block
            c = values(x_ptr, d, base, inside, channels, pixels, CHANNELS_LAST) - row(centre_ptr, 0, d, channels)
            g = values(g_ptr, d, base, inside, channels, pixels, CHANNELS_LAST)
            result = pixel_gradient(c, g, weights, logits, tables_ptr, d, channels, COMPONENTS)
            write(result, result_ptr, d, base, inside, channels, pixels, CHANNELS_LAST)
