#include "cuda_layer.h"

#include <limits>
#include <map>
#include <mutex>
#include <utility>

namespace cuda {

// A kernel's PTX as code of one GPU; layers share it.
class LoadedKernel {
public:
    LoadedKernel(const Driver& driver, Context* context, KernelPointer source)
        : driver_(driver), context_(context), source_(std::move(source)) {
        const ContextScope scope(driver, context);
        check(driver, driver.module_load(&module_, source_->ptx.c_str()),
              "the GPU does not take the layer's kernel, which needs compute capability 8.0 and driver 525");
        try {
            check(driver, driver.get_function(&function_, module_, source_->entry.c_str()),
                  "the layer's PTX has no entry point " + source_->entry + "; compile the kernels again");
            if (source_->shared_bytes > kSharedBytesForAll)
                check(driver,
                      driver.set_attribute(function_, kMaxDynamicSharedSizeBytes,
                                           static_cast<int>(source_->shared_bytes)),
                      "the layer's kernel needs more shared memory than the GPU has");
        } catch (...) {
            driver.module_unload(module_);
            throw;
        }
    }

    ~LoadedKernel() {
        try {
            const ContextScope scope(driver_, context_);
            driver_.module_unload(module_);
        } catch (const std::exception&) {
            // The context is gone, as at the end of a process, and the module with it.
        }
    }

    LoadedKernel(const LoadedKernel&) = delete;
    LoadedKernel& operator=(const LoadedKernel&) = delete;

    const Kernel& source() const { return *source_; }
    Function* function() const { return function_; }

private:
    static constexpr unsigned kSharedBytesForAll = 48 * 1024;  // what every kernel may have without asking

    const Driver& driver_;
    Context* context_;
    KernelPointer source_;
    Module* module_ = nullptr;
    Function* function_ = nullptr;
};

namespace {

// Fewer programs than this leave parts of a large GPU idle: smaller blocks are better then.
constexpr int64_t kEnoughPrograms = 128;
// Widest access of a kernel to memory.
constexpr uintptr_t kAlignment = 16;

std::shared_ptr<const LoadedKernel> load(const Driver& driver, Context* context, const KernelPointer& source) {
    static std::mutex mutex;
    static auto& loaded = *new std::map<std::pair<Context*, KernelPointer>, std::weak_ptr<const LoadedKernel>>;
    const std::lock_guard<std::mutex> lock(mutex);
    std::weak_ptr<const LoadedKernel>& place = loaded[{context, source}];
    std::shared_ptr<const LoadedKernel> kernel = place.lock();
    if (!kernel) place = kernel = std::make_shared<const LoadedKernel>(driver, context, source);
    return kernel;
}

// Copies from pageable memory may still be under way when the copying function returns, and streams of onnxruntime do
// not wait for them: hence the one synchronization, when the layer is made.
DevicePointer upload(const Driver& driver, const std::vector<float>& values) {
    DevicePointer memory = 0;
    const size_t bytes = values.size() * sizeof(float);
    check(driver, driver.allocate(&memory, bytes), "the GPU has no memory left for the layer's tables");
    Result result = driver.copy_to_device(memory, values.data(), bytes);
    if (result == 0) result = driver.context_synchronize();
    if (result != 0) driver.free(memory);
    check(driver, result, "the layer's tables cannot be copied to the GPU");
    return memory;
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kAlignment == 0; }

std::string missing(const KernelKind& kind, int channels, const std::string& more) {
    return "no CUDA kernel was compiled for " + description(kind, channels) + more +
           "; install Triton, or give a folder of compiled kernels in CBN_CUDA_KERNELS";
}

int64_t programs(const Kernel& kernel, int64_t pixel_count) {
    return (pixel_count + kernel.block_pixels - 1) / kernel.block_pixels;
}

// Whether `candidate` suits better than `known`: wider accesses first, then whole pieces of channels, then the largest
// blocks of which there are enough.
bool is_better(const Kernel& candidate, const Kernel& known, int64_t pixel_count) {
    if (candidate.vector != known.vector) return candidate.vector > known.vector;
    if (candidate.full != known.full) return candidate.full;
    const bool enough = programs(candidate, pixel_count) >= kEnoughPrograms;
    if (enough != (programs(known, pixel_count) >= kEnoughPrograms)) return enough;
    return enough ? candidate.block_pixels > known.block_pixels : candidate.block_pixels < known.block_pixels;
}

}  // namespace

std::vector<float> packed_tables(const cbn::Tables& tables) {
    constexpr double kPerLog2 = 1.4426950408889634;  // 1 / log 2: the kernels' exponential is to base 2
    const size_t M = tables.components, D = tables.channels, row = 2 * M + 1;
    std::vector<float> packed((1 + 4 * M) * D + M);
    for (size_t d = 0; d < D; ++d) packed[d] = tables.density[row * d];
    for (size_t j = 0; j < M; ++j) {
        const bool dead = tables.constant[j] == std::numeric_limits<float>::lowest();
        packed[(1 + 4 * M) * D + j] =
            dead ? -std::numeric_limits<float>::infinity() : static_cast<float>(kPerLog2 * tables.constant[j]);
        // A dead component's rows stay zero: whatever they met, 0 times it must not be NaN.
        for (size_t d = 0; !dead && d < D; ++d) {
            float* to = &packed[(1 + 4 * j) * D + d];
            to[0] = static_cast<float>(kPerLog2 * tables.density[row * d + 1 + j]);
            to[D] = static_cast<float>(kPerLog2 * tables.density[row * d + 1 + M + j]);
            to[2 * D] = tables.affine[row * d + 1 + j];
            to[3 * D] = tables.affine[row * d + 1 + M + j];
        }
    }
    return packed;
}

Layer::Layer(const KernelKind& kind, const cbn::Tables& tables)
    : driver_(driver()), context_(current_context(driver_)), kind_(kind), channels_(tables.channels) {
    for (const KernelPointer& source : kernels_for(kind_, channels_)) kernels_.push_back(load(driver_, context_, source));
    if (kernels_.empty()) throw Error(missing(kind_, channels_, ""));
    const ContextScope scope(driver_, context_);
    tables_ = upload(driver_, packed_tables(tables));
}

Layer::~Layer() {
    try {
        const ContextScope scope(driver_, context_);
        driver_.free(tables_);
    } catch (const std::exception&) {
        // The context is gone, as at the end of a process, and its memory with it.
    }
}

const LoadedKernel& Layer::choose(const Tensors& tensors) const {
    const LoadedKernel* best = nullptr;
    for (const auto& kernel : kernels_) {
        const Kernel& source = kernel->source();
        if (source.posterior != (tensors.posterior != nullptr) || !source.takes_pixels(tensors.pixels)) continue;
        if (!best || is_better(source, best->source(), tensors.images * tensors.pixels)) best = kernel.get();
    }
    if (!best)
        throw Error(missing(kind_, channels_,
                            ", images of " + std::to_string(tensors.pixels) + " pixels" +
                                (tensors.posterior ? ", with the posterior" : "")));
    return *best;
}

void Layer::launch(const Tensors& tensors, void* stream) const {
    if (tensors.pixels > INT32_MAX || tensors.images > INT32_MAX / tensors.pixels)
        throw Error("a batch has more than 2147483647 pixels; make the batch smaller");
    if (!is_aligned(tensors.x) || !is_aligned(tensors.residual) || !is_aligned(tensors.y) || !is_aligned(tensors.posterior))
        throw Error("tensors must begin at multiples of 16 bytes; bind memory that does");
    const LoadedKernel& kernel = choose(tensors);
    int32_t pixel_count = static_cast<int32_t>(tensors.images * tensors.pixels);
    int32_t channels = channels_, pixels = static_cast<int32_t>(tensors.pixels);
    const void *x = tensors.x, *residual = tensors.residual;
    void *y = tensors.y, *posterior = tensors.posterior;
    DevicePointer tables = tables_;
    void* parameters[8];
    size_t count = 0;
    parameters[count++] = &x;
    if (kind_.residual) parameters[count++] = &residual;
    parameters[count++] = &tables;
    parameters[count++] = &pixel_count;
    parameters[count++] = &channels;
    parameters[count++] = &pixels;
    parameters[count++] = &y;
    if (posterior) parameters[count++] = &posterior;
    const Kernel& source = kernel.source();
    // Any thread may run the session, also one that has no context yet, or another GPU's.
    const ContextScope scope(driver_, context_);
    check(driver_,
          driver_.launch(kernel.function(), static_cast<unsigned>(programs(source, pixel_count)), 1, 1, source.threads,
                         1, 1, source.shared_bytes, static_cast<Stream*>(stream), parameters, nullptr),
          "the layer's kernel cannot be launched");
}

}  // namespace cuda
