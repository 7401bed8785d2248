// 8-bit channels-last tensors: tiles of pixels are made float, computed as one block of all channels, and rounded.

#include <algorithm>
#include <cfloat>

#include "forward.h"
#include "scratch.h"

namespace cbn {

namespace {

// So many pixels keep the kernels busy, if their values do not leave the cache.
constexpr int64_t kMostPixels = 256, kFewestPixels = 32, kTileValues = 1 << 12;

}  // namespace

bool takes_channels_last(const Kernels& kernels, int64_t channels) {
    return channels % kernels.lanes == 0 && channels <= INT32_MAX / kMostPixels;
}

bool is_valid(const Quantum& quantum) {
    return quantum.scale > 0.0f && quantum.scale <= FLT_MAX && quantum.zero >= 0 && quantum.zero <= 255;
}

void forward_quantized(const Kernels& kernels, const TableView& tables, const Tensors& tensors, int64_t begin,
                       int64_t end) {
    const int64_t channels = tables.channels;
    const int64_t step = std::clamp(kTileValues / channels, kFewestPixels, kMostPixels);
    const Scratch memory = make_scratch(step * channels * (tensors.residual ? 2 : 1));
    float* values = memory.get();
    float* residual = tensors.residual ? values + step * channels : nullptr;
    for (; begin < end; begin += step) {
        const int64_t pixels = std::min(step, end - begin), at = begin * channels;
        const int count = static_cast<int>(pixels * channels);
        kernels.widen_uint8(static_cast<const uint8_t*>(tensors.x) + at, values, count, tensors.x_quantum);
        if (residual)
            kernels.widen_uint8(static_cast<const uint8_t*>(tensors.residual) + at, residual, count,
                                tensors.residual_quantum);
        kernels.forward_blocked(tables, {values, residual, values, nullptr, 0, 0, static_cast<int>(channels),
                                         static_cast<int>(channels), static_cast<int>(pixels), tensors.relu, false});
        kernels.narrow_uint8(values, static_cast<uint8_t*>(tensors.y) + at, count, tensors.y_quantum);
    }
}

}  // namespace cbn
