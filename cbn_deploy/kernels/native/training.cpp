#include "training.h"

#include <algorithm>
#include <vector>

namespace cbn {

namespace {

// Pixels of one chunk: enough that its sums are small beside them, few enough that there are many chunks.
constexpr int64_t kChunkPixels = 1024;
// Values of one array in a tile: three arrays and the posteriors stay in the second-level cache.
constexpr int64_t kTileValues = 16384;
constexpr int kMinTilePixels = 64, kMaxTilePixels = 256;

// Memory that starts at a cache line.
struct alignas(64) Line {
    float values[16];
};
using Scratch = std::vector<Line>;

Scratch zeros(int64_t values) { return Scratch(static_cast<size_t>(values / 16 + 1), Line{}); }

int tile_pixels(int channels) {
    const int64_t fit = kTileValues / channels / kMinTilePixels * kMinTilePixels;
    return static_cast<int>(std::clamp<int64_t>(fit, kMinTilePixels, kMaxTilePixels));
}

// Copies rows between a tensor (images, rows, pixels) and a tile, whose pixels may come from several images.
class Packer {
public:
    Packer(int64_t pixels, int64_t begin, int count) : pixels_(pixels), begin_(begin), count_(count) {}

    void pack(const float* tensor, int rows, float* tile, ptrdiff_t stride) const {
        each_run(rows, [&](int64_t at, int lane, int run, int row) {
            std::copy_n(tensor + at, run, tile + row * stride + lane);
        });
        for (int row = 0; row < rows; ++row) std::fill(tile + row * stride + count_, tile + (row + 1) * stride, 0.0f);
    }

    void unpack(const float* tile, ptrdiff_t stride, int rows, float* tensor) const {
        each_run(rows, [&](int64_t at, int lane, int run, int row) {
            std::copy_n(tile + row * stride + lane, run, tensor + at);
        });
    }

private:
    template <typename Copy>
    void each_run(int rows, Copy copy) const {
        for (int lane = 0; lane < count_;) {
            const int64_t image = (begin_ + lane) / pixels_, pixel = (begin_ + lane) % pixels_;
            const int run = static_cast<int>(std::min<int64_t>(pixels_ - pixel, count_ - lane));
            for (int row = 0; row < rows; ++row) copy((image * rows + row) * pixels_ + pixel, lane, run, row);
            lane += run;
        }
    }

    int64_t pixels_, begin_;
    int count_;
};

TrainingTile empty_tile(const TrainingTensors& tensors, float* sums) {
    TrainingTile tile{};
    tile.components = tensors.components;
    tile.channels = tensors.channels;
    tile.table = tensors.table;
    tile.constant = tensors.constant;
    tile.sums = sums;
    return tile;
}

// Pixels begin .. begin + count of one image, in place. `count` must be a multiple of the lanes.
void run_in_place(const TrainingKernels& kernels, TrainingStep step, const TrainingTensors& t, int64_t begin, int count,
                  float* sums) {
    const int64_t image = begin / t.pixels, pixel = begin % t.pixels;
    const int64_t at = image * t.channels * t.pixels + pixel;
    TrainingTile tile = empty_tile(t, sums);
    tile.x = t.x + at;
    tile.grad = t.grad ? t.grad + at : nullptr;
    tile.result = t.result ? t.result + at : nullptr;
    tile.stride = tile.posterior_stride = t.pixels;
    tile.posterior = t.posterior + image * t.components * t.pixels + pixel;
    tile.vectors = count / kernels.lanes;
    tile.live = count;
    kernels.steps[static_cast<int>(step)](tile);
}

// The same for any pixels, through `scratch` of three times channels and once components rows of `stride`.
void run_packed(const TrainingKernels& kernels, TrainingStep step, const TrainingTensors& t, int64_t begin, int count,
                float* scratch, int stride, float* sums) {
    const Packer packer(t.pixels, begin, count);
    const int64_t values = static_cast<int64_t>(t.channels) * stride;
    float *x = scratch, *grad = scratch + values, *result = scratch + 2 * values, *posterior = scratch + 3 * values;
    packer.pack(t.x, t.channels, x, stride);
    if (t.grad) packer.pack(t.grad, t.channels, grad, stride);
    if (step != TrainingStep::kExpectation) packer.pack(t.posterior, t.components, posterior, stride);
    TrainingTile tile = empty_tile(t, sums);
    tile.x = x;
    tile.grad = grad;
    tile.result = result;
    tile.stride = tile.posterior_stride = stride;
    tile.posterior = posterior;
    tile.vectors = (count + kernels.lanes - 1) / kernels.lanes;
    tile.live = count;
    kernels.steps[static_cast<int>(step)](tile);
    if (step == TrainingStep::kExpectation) packer.unpack(posterior, stride, t.components, t.posterior);
    if (t.result) packer.unpack(result, stride, t.channels, t.result);
}

}  // namespace

const TrainingKernels& training_kernels(const Kernels& kernels) {
#ifdef CBN_X86_KERNELS
    if (&kernels == &kAvx512Kernels) return kAvx512TrainingKernels;
    if (&kernels == &kAvx2Kernels) return kAvx2TrainingKernels;
#endif
    (void)kernels;
    return kBaselineTrainingKernels;
}

const PlaneKernels& plane_kernels(const Kernels& kernels) {
#ifdef CBN_X86_KERNELS
    if (&kernels == &kAvx512Kernels) return kAvx512PlaneKernels;
    if (&kernels == &kAvx2Kernels) return kAvx2PlaneKernels;
#endif
    (void)kernels;
    return kBaselinePlaneKernels;
}

int64_t training_chunks(int64_t images, int64_t pixels) {
    return (images * pixels + kChunkPixels - 1) / kChunkPixels;
}

int64_t sums_length(TrainingStep step, int components, int channels) {
    const int64_t table = static_cast<int64_t>(components) * channels;
    if (step == TrainingStep::kExpectation) return components + 2 * table;
    return step == TrainingStep::kOutputSums ? 2 * table : 0;
}

void run_chunk(const TrainingKernels& kernels, TrainingStep step, const TrainingTensors& tensors, int64_t chunk) {
    const int lanes = kernels.lanes, limit = tile_pixels(tensors.channels);
    const int64_t length = sums_length(step, tensors.components, tensors.channels);
    const int64_t rows = 3 * static_cast<int64_t>(tensors.channels) + tensors.components;
    const bool in_place = tensors.pixels % lanes == 0;
    Scratch sums_memory = zeros(length * lanes), tile_memory = zeros(in_place ? 0 : rows * limit);
    float *sums = sums_memory.data()->values, *scratch = tile_memory.data()->values;
    const int64_t end = std::min((chunk + 1) * kChunkPixels, tensors.images * tensors.pixels);
    for (int64_t pixel = chunk * kChunkPixels; pixel < end;) {
        int64_t count = std::min<int64_t>(limit, end - pixel);
        if (in_place) {
            count = std::min(count, tensors.pixels - pixel % tensors.pixels);
            run_in_place(kernels, step, tensors, pixel, static_cast<int>(count), sums);
        } else {
            run_packed(kernels, step, tensors, pixel, static_cast<int>(count), scratch, limit, sums);
        }
        pixel += count;
    }
    for (int64_t i = 0; i < length; ++i) {
        float sum = 0.0f;
        for (int lane = 0; lane < lanes; ++lane) sum += sums[i * lanes + lane];
        tensors.sums[chunk * length + i] = sum;
    }
}

namespace {

ptrdiff_t planes_of_chunk(const Planes& planes) {
    return std::max<ptrdiff_t>(1, kTileValues / std::max<ptrdiff_t>(1, planes.pixels));
}

}  // namespace

int64_t plane_chunks(const Planes& planes) {
    const ptrdiff_t size = planes_of_chunk(planes);
    return (planes.planes + size - 1) / size;
}

void run_plane_chunk(const PlaneKernels& kernels, PlaneStep step, const Planes& planes, int64_t chunk) {
    const ptrdiff_t size = planes_of_chunk(planes), begin = chunk * size;
    Planes part = planes;
    part.planes = std::min(size, planes.planes - begin);
    part.x += begin * planes.pixels;
    if (part.table) part.table += begin * kPlaneTable;
    if (part.grad) part.grad += begin * planes.pixels;
    if (part.result) part.result += begin * planes.pixels;
    if (part.sums) part.sums += begin * kPlaneSums;
    kernels.steps[static_cast<int>(step)](part);
}

}  // namespace cbn
