// Compiled kernels that the process has been given: PTX and how to launch it (docs/gpu.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "forward.h"

namespace cuda {

// What a kernel computes: the op's form, the element type of X, and the number of components.
struct KernelKind {
    cbn::DataType type;
    bool residual;
    bool relu;
    int components;

    bool operator==(const KernelKind& other) const {
        return type == other.type && residual == other.residual && relu == other.relu &&
               components == other.components;
    }
};

// A kernel for planar tensors; the members are those of cbn_cuda_kernel (c_api.h).
struct Kernel {
    KernelKind kind;
    bool posterior;
    int most_channels;
    bool full;
    int vector;
    int block_pixels;
    unsigned threads;
    unsigned shared_bytes;
    std::string entry;
    std::string ptx;

    bool takes_channels(int channels) const { return full ? channels == most_channels : channels <= most_channels; }
    bool takes_pixels(int64_t pixels) const { return pixels % vector == 0; }
    // Whether the two are for the same use, so that the later one replaces the earlier.
    bool same_use(const Kernel& other) const;
    bool same_code(const Kernel& other) const;
};

using KernelPointer = std::shared_ptr<const Kernel>;

// Makes a kernel known to layers that are created from now on. Thread-safe.
void add_kernel(Kernel kernel);

// The kernels that a layer of this kind may use: those cut most tightly for its channels, with and without posterior,
// for all images. Thread-safe.
std::vector<KernelPointer> kernels_for(const KernelKind& kind, int channels);

// "float32, 4 components, 64 channels, with residual and ReLU".
std::string description(const KernelKind& kind, int channels);

}  // namespace cuda
