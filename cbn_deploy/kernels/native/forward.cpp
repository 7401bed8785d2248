#include "forward.h"

#include <algorithm>

#include "half.h"
#include "scratch.h"

namespace cbn {

namespace {

// Pixels of a packed tile: a multiple of every kernel's lanes.
constexpr int kTilePixels = 64;
// Channel values times components below which a range is not worth a thread: some microseconds of work.
constexpr int64_t kRangeWork = 1 << 15;

// A run of neighbouring pixels of one image, and where in the tile they go.
struct Run {
    int64_t image, pixel;
    int lane, count;
};

struct Float32Format {
    using Stored = float;
    static float to_float(float stored) { return stored; }
    static float from_float(float value) { return value; }
    static void widen(const Kernels&, const float* stored, float* values, int count) {
        std::copy_n(stored, count, values);
    }
    static void narrow(const Kernels&, const float* values, float* stored, int count) {
        std::copy_n(values, count, stored);
    }
};

struct Float16Format : Float16 {
    static void widen(const Kernels& kernels, const uint16_t* stored, float* values, int count) {
        kernels.widen_float16(stored, values, count);
    }
    static void narrow(const Kernels& kernels, const float* values, uint16_t* stored, int count) {
        kernels.narrow_float16(values, stored, count);
    }
};

struct Bfloat16Format : Bfloat16 {
    static void widen(const Kernels& kernels, const uint16_t* stored, float* values, int count) {
        kernels.widen_bfloat16(stored, values, count);
    }
    static void narrow(const Kernels& kernels, const float* values, uint16_t* stored, int count) {
        kernels.narrow_bfloat16(values, stored, count);
    }
};

// Copies tiles to and from scratch memory in float32, one after the other.
template <typename Format>
class PackedTiles {
public:
    using Stored = typename Format::Stored;

    PackedTiles(const Kernels& kernels, const TableView& tables, const Tensors& tensors)
        : kernels_(kernels), tables_(tables), tensors_(tensors), channels_(tables.channels) {
        const int64_t tile = static_cast<int64_t>(kTilePixels) * channels_;
        const int64_t posterior = tensors.posterior ? static_cast<int64_t>(kTilePixels) * tables.components : 0;
        memory_ = make_scratch(tile * (tensors.residual ? 2 : 1) + posterior);
        values_ = memory_.get();
        residual_ = tensors.residual ? values_ + tile : nullptr;
        posterior_ = tensors.posterior ? values_ + tile * (tensors.residual ? 2 : 1) : nullptr;
    }

    void forward(int64_t begin, int64_t end) {
        for (; begin < end; begin += kTilePixels) tile(begin, std::min<int64_t>(end, begin + kTilePixels));
    }

private:
    void tile(int64_t begin, int64_t end) {
        const int count = static_cast<int>(end - begin);
        const int vectors = (count + kernels_.lanes - 1) / kernels_.lanes;
        const int unused = vectors * kernels_.lanes - count;
        for (int64_t d = 0; d < channels_; ++d) {
            std::fill_n(values_ + d * kTilePixels + count, unused, 0.0f);
            if (residual_) std::fill_n(residual_ + d * kTilePixels + count, unused, 0.0f);
        }
        each_run(begin, end, [this](const Run& run) {
            pack(static_cast<const Stored*>(tensors_.x), run, values_);
            if (residual_) pack(static_cast<const Stored*>(tensors_.residual), run, residual_);
        });
        kernels_.forward(tables_, {values_, kTilePixels, residual_, kTilePixels, values_, kTilePixels, posterior_,
                                   kTilePixels, vectors, tensors_.relu});
        each_run(begin, end, [this](const Run& run) {
            unpack(run);
            if (posterior_) unpack_posterior(run);
        });
    }

    template <typename Function>
    void each_run(int64_t begin, int64_t end, Function function) const {
        for (int64_t n = begin; n < end;) {
            const int64_t image = n / tensors_.pixels, pixel = n % tensors_.pixels;
            const int64_t count = std::min(end - n, tensors_.pixels - pixel);
            function(Run{image, pixel, static_cast<int>(n - begin), static_cast<int>(count)});
            n += count;
        }
    }

    void pack(const Stored* tensor, const Run& run, float* tile) const {
        const Stored* source = tensor + run.image * channels_ * tensors_.pixels + run.pixel;
        float* target = tile + run.lane;
        for (int64_t d = 0; d < channels_; ++d, source += tensors_.pixels, target += kTilePixels)
            if (run.count == 1)
                *target = Format::to_float(*source);
            else
                Format::widen(kernels_, source, target, run.count);
    }

    void unpack(const Run& run) const {
        Stored* target = static_cast<Stored*>(tensors_.y) + run.image * channels_ * tensors_.pixels + run.pixel;
        const float* source = values_ + run.lane;
        for (int64_t d = 0; d < channels_; ++d, target += tensors_.pixels, source += kTilePixels)
            if (run.count == 1)
                *target = Format::from_float(*source);
            else
                Format::narrow(kernels_, source, target, run.count);
    }

    void unpack_posterior(const Run& run) const {
        float* target = tensors_.posterior + run.image * tables_.components * tensors_.pixels + run.pixel;
        const float* source = posterior_ + run.lane;
        for (int j = 0; j < tables_.components; ++j, target += tensors_.pixels, source += kTilePixels)
            std::copy_n(source, run.count, target);
    }

    const Kernels& kernels_;
    const TableView& tables_;
    const Tensors& tensors_;
    const int64_t channels_;
    Scratch memory_;
    float *values_, *residual_, *posterior_;
};

// Float32 pixels of one image where they lie, at least one vector of them.
void forward_unpacked(const Kernels& kernels, const TableView& tables, const Tensors& tensors, int64_t image, int64_t begin,
              int64_t end) {
    const int64_t offset = image * tables.channels * tensors.pixels;
    const auto tile = [&](int64_t pixel, int64_t vectors) {
        const int64_t at = offset + pixel;
        float* posterior =
            tensors.posterior ? tensors.posterior + image * tables.components * tensors.pixels + pixel : nullptr;
        const auto* residual = tensors.residual ? static_cast<const float*>(tensors.residual) + at : nullptr;
        kernels.forward(tables, {static_cast<const float*>(tensors.x) + at, tensors.pixels, residual, tensors.pixels,
                                 static_cast<float*>(tensors.y) + at, tensors.pixels, posterior, tensors.pixels,
                                 static_cast<int>(vectors), tensors.relu});
    };
    const int64_t vectors = (end - begin) / kernels.lanes, rest = begin + vectors * kernels.lanes;
    tile(begin, vectors);
    if (rest == end) return;
    // The rest is less than a vector: compute the last whole vector, most of it for the second time, unless the first
    // time has overwritten what it would read.
    if (tensors.y != tensors.x && tensors.y != tensors.residual)
        tile(end - kernels.lanes, 1);
    else
        PackedTiles<Float32Format>(kernels, tables, tensors)
            .forward(image * tensors.pixels + rest, image * tensors.pixels + end);
}

void forward_float32(const Kernels& kernels, const TableView& tables, const Tensors& tensors, int64_t begin,
                     int64_t end) {
    for (int64_t n = begin; n < end;) {
        const int64_t image = n / tensors.pixels, pixel = n % tensors.pixels;
        const int64_t count = std::min(end - n, tensors.pixels - pixel);
        if (count >= kernels.lanes)
            forward_unpacked(kernels, tables, tensors, image, pixel, pixel + count);
        else
            PackedTiles<Float32Format>(kernels, tables, tensors).forward(n, n + count);
        n += count;
    }
}

// Values of a tensor from which on it is fetched ahead: two or three such tensors fill a core's cache. With few channels
// its blocks are few streams, which the processor fetches by itself.
constexpr int64_t kBeyondCaches = 1 << 19, kManyChannels = 64;

void forward_blocked(const Kernels& kernels, const TableView& tables, const Tensors& tensors, int64_t begin,
                     int64_t end) {
    const int64_t channels = (tables.channels + tensors.block - 1) / tensors.block * tensors.block;
    const bool ahead = channels >= kManyChannels && channels * tensors.pixels * tensors.images >= kBeyondCaches;
    for (int64_t n = begin; n < end;) {
        const int64_t image = n / tensors.pixels, pixel = n % tensors.pixels;
        const int64_t count = std::min<int64_t>(end - n, tensors.pixels - pixel);
        const int64_t at = image * channels * tensors.pixels + pixel * tensors.block;
        const auto* residual = tensors.residual ? static_cast<const float*>(tensors.residual) + at : nullptr;
        float* posterior =
            tensors.posterior ? tensors.posterior + image * tables.components * tensors.pixels + pixel : nullptr;
        kernels.forward_blocked(tables, {static_cast<const float*>(tensors.x) + at, residual,
                                         static_cast<float*>(tensors.y) + at, posterior, tensors.pixels,
                                         tensors.pixels * tensors.block, tensors.block, static_cast<int>(channels),
                                         static_cast<int>(count), tensors.relu, ahead});
        n += count;
    }
}

}  // namespace

bool takes_block(const Kernels& kernels, int64_t block) {
    return block > 0 && block <= kGroup && block % kernels.lanes == 0 && kGroup % block == 0;
}

void forward(const Kernels& kernels, const TableView& tables, const Tensors& tensors, int64_t begin, int64_t end) {
    if (begin >= end) return;
    if (tensors.block) return forward_blocked(kernels, tables, tensors, begin, end);
    switch (tensors.type) {
        case DataType::kUint8: return forward_quantized(kernels, tables, tensors, begin, end);
        case DataType::kFloat16: return PackedTiles<Float16Format>(kernels, tables, tensors).forward(begin, end);
        case DataType::kBfloat16: return PackedTiles<Bfloat16Format>(kernels, tables, tensors).forward(begin, end);
        case DataType::kFloat32:
            if (tensors.pixels >= kernels.lanes)
                return forward_float32(kernels, tables, tensors, begin, end);
            return PackedTiles<Float32Format>(kernels, tables, tensors).forward(begin, end);
    }
}

int64_t worthwhile_ranges(const TableView& tables, const Tensors& tensors, int64_t limit) {
    const int64_t work = tensors.images * tensors.pixels * tables.channels * (tables.components + 1);
    // A power of two can be shared evenly by the usual numbers of threads.
    int64_t ranges = 1;
    while (2 * ranges <= std::min(limit, work / kRangeWork)) ranges *= 2;
    return ranges;
}

Range range(const Tensors& tensors, int64_t index, int64_t count) {
    const int64_t total = tensors.images * tensors.pixels;
    // Whole images where there are enough of them, else whole tiles.
    const int64_t unit = tensors.images >= count ? tensors.pixels : kTilePixels;
    const int64_t units = (total + unit - 1) / unit;
    const auto cut = [&](int64_t i) { return std::min(total, units * i / count * unit); };
    return {cut(index), cut(index + 1)};
}

}  // namespace cbn
