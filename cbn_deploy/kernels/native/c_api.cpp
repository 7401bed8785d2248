#include "c_api.h"

#include <new>

#include "cuda_registry.h"
#include "forward.h"
#include "instruction_set.h"
#include "tables.h"

struct cbn_layer {
    const cbn::Kernels* kernels;
    cbn::Tables tables;
};

namespace {

const char* const kNoMemory = "There is not enough memory for the layer.";

bool is_known(int32_t type) {
    switch (static_cast<cbn::DataType>(type)) {
        case cbn::DataType::kFloat32:
        case cbn::DataType::kUint8:
        case cbn::DataType::kFloat16:
        case cbn::DataType::kBfloat16: return true;
    }
    return false;
}

cbn::Quantum quantum(const cbn_quantum& given) { return {given.scale, given.zero}; }

// What is wrong with 8-bit tensors; null: nothing.
const char* quantized_refusal(const cbn_layer& layer, const cbn_tensors& tensors) {
    if (tensors.block || tensors.posterior) return "Tensors of type uint8 have neither blocks nor a posterior.";
    if (!cbn::takes_channels_last(*layer.kernels, layer.tables.channels))
        return "The channels of tensors of type uint8 must be a multiple of 4, 8 or 16, as the instruction set can read.";
    if (!cbn::is_valid(quantum(tensors.x_quantum)) || !cbn::is_valid(quantum(tensors.y_quantum)) ||
        (tensors.residual && !cbn::is_valid(quantum(tensors.residual_quantum))))
        return "Tensors of type uint8 need scales above zero and zero points from 0 to 255.";
    return nullptr;
}

// What is wrong with the tensors' layout; null: nothing.
const char* layout_refusal(const cbn_layer& layer, const cbn_tensors& tensors) {
    const auto type = static_cast<cbn::DataType>(tensors.type);
    if (type == cbn::DataType::kUint8) return quantized_refusal(layer, tensors);
    if (tensors.block && (type != cbn::DataType::kFloat32 || !cbn::takes_block(*layer.kernels, tensors.block)))
        return "Blocked tensors must be float32, in blocks of 8 or 16 channels that the instruction set can read.";
    return nullptr;
}

}  // namespace

int cbn_abi(void) { return CBN_ABI; }

const char* cbn_version(void) { return CBN_VERSION; }

const char* cbn_instruction_set(void) {
    const cbn::Kernels* kernels = cbn::chosen_kernels();
    return kernels ? kernels->name : nullptr;
}

const char* cbn_layer_create(int64_t components, int64_t channels, const float* tau, const float* mean,
                             const float* var, const float* scale, const float* bias, float epsilon,
                             float density_scale, const char* instruction_set, cbn_layer** layer) {
    if (!tau || !mean || !var || !scale || !bias || !layer) return "A table or the place for the result is missing.";
    if (components < 1 || components > cbn::kMaxComponents) return "A layer must have 1 to 256 components.";
    if (channels < 1 || channels > INT32_MAX) return "A layer must have at least one channel.";
    const cbn::Kernels* kernels =
        instruction_set ? cbn::kernels_by_name(instruction_set) : cbn::chosen_kernels();
    if (!kernels) return "The instruction set asked for (CBN_INSTRUCTION_SET) does not exist or cannot run here.";
    try {
        *layer = new cbn_layer{kernels, cbn::make_tables(static_cast<int>(components), static_cast<int>(channels), tau,
                                                         mean, var, scale, bias, epsilon, density_scale)};
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return nullptr;
}

void cbn_layer_destroy(cbn_layer* layer) { delete layer; }

const char* cbn_layer_forward(const cbn_layer* layer, const cbn_tensors* tensors, int64_t begin, int64_t end) {
    if (!layer || !tensors) return "The layer or the tensors are missing.";
    if (!is_known(tensors->type)) return "The tensors must be float32 (1), uint8 (2), float16 (10) or bfloat16 (16).";
    if (tensors->images < 0 || tensors->pixels < 0) return "The numbers of images and pixels must not be negative.";
    if (begin < 0 || begin > end || end > tensors->images * tensors->pixels)
        return "The range of pixels must lie within the tensor.";
    if (begin == end) return nullptr;
    if (!tensors->x || !tensors->y) return "The input or the output tensor is missing.";
    if (const char* reason = layout_refusal(*layer, *tensors)) return reason;
    const cbn::Tensors whole{static_cast<cbn::DataType>(tensors->type),
                             tensors->images,
                             tensors->pixels,
                             tensors->x,
                             tensors->residual,
                             tensors->y,
                             tensors->posterior,
                             tensors->relu != 0,
                             static_cast<int>(tensors->block),
                             quantum(tensors->x_quantum),
                             quantum(tensors->residual_quantum),
                             quantum(tensors->y_quantum)};
    try {
        cbn::forward(*layer->kernels, layer->tables.view(), whole, begin, end);
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    return nullptr;
}

const char* cbn_cuda_register_kernel(const cbn_cuda_kernel* kernel) {
    if (!kernel || !kernel->entry || !kernel->ptx) return "The kernel, its entry point or its PTX is missing.";
    if (!*kernel->entry || !*kernel->ptx) return "The kernel's entry point and PTX must not be empty.";
    if (!is_known(kernel->type) || static_cast<cbn::DataType>(kernel->type) == cbn::DataType::kUint8)
        return "The kernel must be for float32 (1), float16 (10) or bfloat16 (16).";
    if (kernel->residual && !kernel->relu) return "No form of the op adds a residual without the activation.";
    if (kernel->components < 1 || kernel->components > cbn::kMaxComponents)
        return "A kernel must be for 1 to 256 components.";
    if (kernel->most_channels < 1 || kernel->vector < 1 || kernel->block_pixels < 1)
        return "The kernel's channels, vector and block of pixels must be at least 1.";
    if (kernel->threads < 1 || kernel->threads > 1024) return "A kernel must have 1 to 1024 threads a block.";
    if (kernel->shared_bytes < 0) return "The kernel's shared memory must not be negative.";
    try {
        const cuda::KernelKind kind{static_cast<cbn::DataType>(kernel->type), kernel->residual != 0, kernel->relu != 0,
                                    kernel->components};
        cuda::add_kernel({kind, kernel->posterior != 0, kernel->most_channels, kernel->full != 0, kernel->vector,
                          kernel->block_pixels, static_cast<unsigned>(kernel->threads),
                          static_cast<unsigned>(kernel->shared_bytes), kernel->entry, kernel->ptx});
    } catch (const std::bad_alloc&) {
        return "There is not enough memory for the kernel.";
    }
    return nullptr;
}
