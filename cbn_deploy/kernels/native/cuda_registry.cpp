#include "cuda_registry.h"

#include <algorithm>
#include <mutex>
#include <utility>

namespace cuda {

namespace {

struct Registry {
    std::mutex mutex;
    std::vector<KernelPointer> kernels;
};

// Lives to the end of the process, whatever is destroyed when it ends.
Registry& registry() {
    static Registry& one = *new Registry;
    return one;
}

const char* name_of(cbn::DataType type) {
    switch (type) {
        case cbn::DataType::kFloat32: return "float32";
        case cbn::DataType::kFloat16: return "float16";
        case cbn::DataType::kBfloat16: return "bfloat16";
        case cbn::DataType::kUint8: break;  // no kernel on a GPU
    }
    return "an unknown type";
}

}  // namespace

bool Kernel::same_use(const Kernel& other) const {
    return kind == other.kind && posterior == other.posterior && most_channels == other.most_channels &&
           full == other.full && vector == other.vector && block_pixels == other.block_pixels;
}

bool Kernel::same_code(const Kernel& other) const {
    return threads == other.threads && shared_bytes == other.shared_bytes && entry == other.entry && ptx == other.ptx;
}

void add_kernel(Kernel kernel) {
    auto added = std::make_shared<const Kernel>(std::move(kernel));
    Registry& all = registry();
    const std::lock_guard<std::mutex> lock(all.mutex);
    for (KernelPointer& known : all.kernels) {
        if (known->same_use(*added)) {
            // Given again, it stays the one that layers have loaded already.
            if (!known->same_code(*added)) known = std::move(added);
            return;
        }
    }
    all.kernels.push_back(std::move(added));
}

std::vector<KernelPointer> kernels_for(const KernelKind& kind, int channels) {
    Registry& all = registry();
    const std::lock_guard<std::mutex> lock(all.mutex);
    std::vector<KernelPointer> fitting;
    for (const KernelPointer& kernel : all.kernels)
        if (kernel->kind == kind && kernel->takes_channels(channels)) fitting.push_back(kernel);
    int tightest = INT32_MAX;
    for (const KernelPointer& kernel : fitting) tightest = std::min(tightest, kernel->most_channels);
    const auto wasteful = [&](const KernelPointer& kernel) { return kernel->most_channels > tightest; };
    fitting.erase(std::remove_if(fitting.begin(), fitting.end(), wasteful), fitting.end());
    return fitting;
}

std::string description(const KernelKind& kind, int channels) {
    std::string text = std::string(name_of(kind.type)) + ", " + std::to_string(kind.components) + " components, " +
                       std::to_string(channels) + " channels";
    if (kind.residual) return text + ", with residual and ReLU";
    return kind.relu ? text + ", with ReLU" : text;
}

}  // namespace cuda
