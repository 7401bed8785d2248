"""The split path's passes as Triton kernels: over the pixels, and over the images of a group.

x, the gradient g of y and the results are (images, channels, pixels), float32, float16 or bfloat16, and dense: their
pixels are contiguous, or with CHANNELS_LAST their channels. Tables of images are (images, channels), those of groups
(M, channels), contiguous, float32; ``groups`` is (images,) int64. All arithmetic is float32.
A program stays inside one image, so that its group is one number. Sums are made without atomics, in the same order
always.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "gradient_sums_kernel",
    "group_gradients_kernel",
    "group_moments_kernel",
    "image_moments_kernel",
    "split_gradient_kernel",
    "split_normalize_kernel",
]

# One compilation for every size: what the compiler may assume of them is said by VECTOR.
SIZES = ["images", "channels", "pixels"]


@triton.jit
def piece_offsets(
    image: tl.tensor,
    d: tl.tensor,
    p: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
) -> tl.tensor:
    """Where channels ``d`` and pixels ``p`` of an image (int64) lie, (BLOCK_D, BLOCK_P)."""
    first = image * channels * pixels
    if CHANNELS_LAST:
        return first + (p[None, :] * channels + d[:, None])
    return first + (d[:, None] * pixels + p[None, :])


@triton.jit
def piece(ptr: tl.tensor, offsets: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """A (BLOCK_D, BLOCK_P) piece of x or g in float32; 0 outside."""
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def group_row(
    table_ptr: tl.tensor, groups_ptr: tl.tensor, image: tl.tensor, d: tl.tensor, channels: tl.tensor
) -> tl.tensor:
    """Channels ``d`` of the row of the image's group, (BLOCK_D,); 0 past the last channel."""
    return tl.load(table_ptr + tl.load(groups_ptr + image) * channels + d, mask=d < channels, other=0.0)


@triton.jit(do_not_specialize=SIZES)
def image_moments_kernel(
    x_ptr: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    LOOPS: tl.constexpr,
) -> None:
    """Mean and biased variance of every channel of every image. Grid (images * blocks of channels,).

    Every lane of a piece keeps the mean and the squared deviations of the pixels that it meets (Welford), and the lanes
    are merged about their common mean: x is read once, and a large common offset cancels in no sum. LOOPS says that an
    image has more than one piece of pixels.
    """
    # A multiple of VECTOR in the compiler's eyes as well: that is what lets it load vectors.
    if CHANNELS_LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
    chunks = (channels + BLOCK_D - 1) // BLOCK_D
    image = (tl.program_id(0) // chunks).to(tl.int64)
    d = tl.program_id(0) % chunks * BLOCK_D + tl.arange(0, BLOCK_D)
    lane = tl.arange(0, BLOCK_P)
    mask = (d < channels)[:, None] & (lane < pixels)[None, :]
    # The first pixel of a lane is its mean exactly: a rounded one would leave a squared deviation behind.
    mean = piece(x_ptr, piece_offsets(image, d, lane, channels, pixels, CHANNELS_LAST), mask)
    squares = tl.zeros((BLOCK_D, BLOCK_P), tl.float32)
    if LOOPS:
        for start in tl.range(BLOCK_P, pixels, BLOCK_P):
            p = start + lane
            inside = (d < channels)[:, None] & (p < pixels)[None, :]
            x = piece(x_ptr, piece_offsets(image, d, p, channels, pixels, CHANNELS_LAST), inside)
            change = tl.where(inside, x - mean, 0.0)
            mean += change * (BLOCK_P / (start + BLOCK_P))
            squares = tl.fma(change, x - mean, squares)
    met = ((pixels - lane + BLOCK_P - 1) // BLOCK_P).to(tl.float32)[None, :]
    share = 1.0 / pixels.to(tl.float32)
    whole = tl.sum(met * mean, axis=1) * share
    apart = mean - whole[:, None]
    var = tl.sum(tl.fma(met * apart, apart, squares), axis=1) * share
    target = image * channels + d
    tl.store(mean_ptr + target, whole, mask=d < channels)
    tl.store(var_ptr + target, var, mask=d < channels)


@triton.jit(do_not_specialize=SIZES)
def gradient_sums_kernel(
    g_ptr: tl.tensor,
    x_ptr: tl.tensor,
    groups_ptr: tl.tensor,
    centre_ptr: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    products_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    LOOPS: tl.constexpr,
) -> None:
    """Sums of (x - centre) g and of g by image and channel. Grid (images * blocks of channels,).

    ``centre`` is (M, channels); LOOPS says that an image has more than one piece of pixels.
    """
    # As in the first kernel: what lets the compiler load vectors.
    if CHANNELS_LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
    chunks = (channels + BLOCK_D - 1) // BLOCK_D
    image = (tl.program_id(0) // chunks).to(tl.int64)
    d = tl.program_id(0) % chunks * BLOCK_D + tl.arange(0, BLOCK_D)
    lane = tl.arange(0, BLOCK_P)
    offsets = piece_offsets(image, d, lane, channels, pixels, CHANNELS_LAST)
    mask = (d < channels)[:, None] & (lane < pixels)[None, :]
    centre = group_row(centre_ptr, groups_ptr, image, d, channels)[:, None]
    sums = piece(g_ptr, offsets, mask)
    products = (piece(x_ptr, offsets, mask) - centre) * sums
    if LOOPS:
        for start in tl.range(BLOCK_P, pixels, BLOCK_P):
            p = start + lane
            further = piece_offsets(image, d, p, channels, pixels, CHANNELS_LAST)
            inside = (d < channels)[:, None] & (p < pixels)[None, :]
            g = piece(g_ptr, further, inside)
            products = tl.fma(piece(x_ptr, further, inside) - centre, g, products)
            sums += g
    target = image * channels + d
    tl.store(products_ptr + target, tl.sum(products, axis=1), mask=d < channels)
    tl.store(sums_ptr + target, tl.sum(sums, axis=1), mask=d < channels)


@triton.jit(do_not_specialize=SIZES)
def split_normalize_kernel(
    x_ptr: tl.tensor,
    groups_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    epsilon: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    y_ptr: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    """y = scale (x - mean) / sqrt(var + eps) + bias of the group. Grid (images * blocks of channels * of pixels,)."""
    # As in the first kernel: what lets the compiler load vectors.
    if CHANNELS_LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
    blocks, chunks = (pixels + BLOCK_P - 1) // BLOCK_P, (channels + BLOCK_D - 1) // BLOCK_D
    part = tl.program_id(0) // blocks
    image = (part // chunks).to(tl.int64)
    d = part % chunks * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    offsets = piece_offsets(image, d, p, channels, pixels, CHANNELS_LAST)
    mask = (d < channels)[:, None] & (p < pixels)[None, :]
    mean = group_row(mean_ptr, groups_ptr, image, d, channels)
    var = group_row(var_ptr, groups_ptr, image, d, channels)
    gain = group_row(scale_ptr, groups_ptr, image, d, channels) / tl.sqrt(var + epsilon)
    bias = group_row(bias_ptr, groups_ptr, image, d, channels)
    y = tl.fma(piece(x_ptr, offsets, mask) - mean[:, None], gain[:, None], bias[:, None])
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def split_gradient_kernel(
    g_ptr: tl.tensor,
    x_ptr: tl.tensor,
    groups_ptr: tl.tensor,
    centre_ptr: tl.tensor,
    gain_ptr: tl.tensor,
    curvature_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    result_ptr: tl.tensor,
    CHANNELS_LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    """gain g + 2 curvature (x - centre) + slope of the group. Grid (images * blocks of channels * of pixels,)."""
    # As in the first kernel: what lets the compiler load vectors.
    if CHANNELS_LAST:
        channels = channels // VECTOR * VECTOR
    else:
        pixels = pixels // VECTOR * VECTOR
    blocks, chunks = (pixels + BLOCK_P - 1) // BLOCK_P, (channels + BLOCK_D - 1) // BLOCK_D
    part = tl.program_id(0) // blocks
    image = (part // chunks).to(tl.int64)
    d = part % chunks * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    offsets = piece_offsets(image, d, p, channels, pixels, CHANNELS_LAST)
    mask = (d < channels)[:, None] & (p < pixels)[None, :]
    centre = group_row(centre_ptr, groups_ptr, image, d, channels)[:, None]
    gain = group_row(gain_ptr, groups_ptr, image, d, channels)[:, None]
    curvature = 2.0 * group_row(curvature_ptr, groups_ptr, image, d, channels)[:, None]
    slope = group_row(slope_ptr, groups_ptr, image, d, channels)[:, None]
    result = tl.fma(piece(x_ptr, offsets, mask) - centre, curvature, slope)
    result = tl.fma(piece(g_ptr, offsets, mask), gain, result)
    tl.store(result_ptr + offsets, result.to(result_ptr.dtype.element_ty), mask=mask)


@triton.jit
def members(groups_ptr: tl.tensor, b: tl.tensor, images: tl.tensor, group: tl.tensor) -> tl.tensor:
    """Which of the images ``b`` belong to the group."""
    return tl.load(groups_ptr + b, mask=b < images, other=-1) == group


@triton.jit
def image_rows(table_ptr: tl.tensor, b: tl.tensor, d: tl.tensor, images: tl.tensor, channels: tl.tensor) -> tl.tensor:
    """Images ``b`` and channels ``d`` of a table, (BLOCK_B, BLOCK_D); 0 outside."""
    offsets = b.to(tl.int64)[:, None] * channels + d[None, :]
    return tl.load(table_ptr + offsets, mask=(b < images)[:, None] & (d < channels)[None, :], other=0.0)


@triton.jit(do_not_specialize=SIZES)
def group_moments_kernel(
    mean_ptr: tl.tensor,
    var_ptr: tl.tensor,
    groups_ptr: tl.tensor,
    images: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    mass_ptr: tl.tensor,
    group_mean_ptr: tl.tensor,
    group_var_ptr: tl.tensor,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Number of pixels, mean and biased variance of every group from its images'. Grid (blocks of channels, M)."""
    group = tl.program_id(1)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    counts = tl.zeros((BLOCK_B,), tl.float32)
    total = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    for start in tl.range(0, images, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        member = members(groups_ptr, b, images, group)
        # Not times 0, which would let one image's NaN into every group.
        total += tl.where(member[:, None], image_rows(mean_ptr, b, d, images, channels), 0.0)
        counts += tl.where(member, 1.0, 0.0)
    count = tl.sum(counts, axis=0)
    share = 1.0 / tl.maximum(count, 1.0)
    mean = tl.sum(total, axis=0) * share
    total = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    for start in tl.range(0, images, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        apart = image_rows(mean_ptr, b, d, images, channels) - mean[None, :]
        spread = tl.fma(apart, apart, image_rows(var_ptr, b, d, images, channels))
        total += tl.where(members(groups_ptr, b, images, group)[:, None], spread, 0.0)
    tl.store(group_mean_ptr + group * channels + d, mean, mask=d < channels)
    tl.store(group_var_ptr + group * channels + d, tl.sum(total, axis=0) * share, mask=d < channels)
    if tl.program_id(0) == 0:
        tl.store(mass_ptr + group, count * pixels)


@triton.jit(do_not_specialize=SIZES)
def group_gradients_kernel(
    products_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    groups_ptr: tl.tensor,
    var_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    inverse_mass_ptr: tl.tensor,
    epsilon: tl.tensor,
    images: tl.tensor,
    channels: tl.tensor,
    grad_scale_ptr: tl.tensor,
    grad_bias_ptr: tl.tensor,
    gain_ptr: tl.tensor,
    curvature_ptr: tl.tensor,
    slope_ptr: tl.tensor,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Gradients of scale and bias, and what the gradient of x is made of. Grid (blocks of channels, M).

    The arithmetic of :mod:`cbn_deploy.kernels.moment_gradients` with shift = 0.
    """
    group = tl.program_id(1)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    products = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    sums = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    for start in tl.range(0, images, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B)
        member = members(groups_ptr, b, images, group)[:, None]
        products += tl.where(member, image_rows(products_ptr, b, d, images, channels), 0.0)
        sums += tl.where(member, image_rows(sums_ptr, b, d, images, channels), 0.0)
    product, total = tl.sum(products, axis=0), tl.sum(sums, axis=0)
    row, inside = group * channels + d, d < channels
    floored = tl.load(var_ptr + row, mask=inside, other=1.0) + epsilon
    inverse_deviation = 1.0 / tl.sqrt(floored)
    gain = tl.load(scale_ptr + row, mask=inside, other=0.0) * inverse_deviation
    share = tl.load(inverse_mass_ptr + group)
    # 0, and not 0 times infinity, where the moments are constants.
    curvature = tl.where(share != 0.0, -0.5 * product * gain / floored * share, 0.0)
    slope = tl.where(share != 0.0, -total * gain * share, 0.0)
    tl.store(grad_scale_ptr + row, product * inverse_deviation, mask=inside)
    tl.store(grad_bias_ptr + row, total, mask=inside)
    tl.store(gain_ptr + row, gain, mask=inside)
    tl.store(curvature_ptr + row, curvature, mask=inside)
    tl.store(slope_ptr + row, slope, mask=inside)
