// One layer on a GPU: its tables in the GPU's memory and its kernels, loaded once; a run is one launch.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cuda_driver.h"
#include "cuda_registry.h"
#include "tables.h"

namespace cuda {

// Contiguous (images, D, pixels) on the GPU, 16-byte aligned; posterior (images, M, pixels) or null.
struct Tensors {
    int64_t images;
    int64_t pixels;
    const void* x;
    const void* residual;
    void* y;
    void* posterior;
};

// The array that the kernels read (docs/gpu.md): m0, for every component the rows P, Q, A and B, then the numbers k.
std::vector<float> packed_tables(const cbn::Tables& tables);

class LoadedKernel;

class Layer {
public:
    // In the calling thread's context. Throws Error.
    Layer(const KernelKind& kind, const cbn::Tables& tables);
    ~Layer();
    Layer(const Layer&) = delete;
    Layer& operator=(const Layer&) = delete;

    // Puts one kernel on the stream and returns: nothing is allocated, nothing waits. Throws Error.
    void launch(const Tensors& tensors, void* stream) const;

    int components() const { return kind_.components; }
    int channels() const { return channels_; }

private:
    const LoadedKernel& choose(const Tensors& tensors) const;

    const Driver& driver_;
    Context* context_;
    KernelKind kind_;
    int channels_;
    std::vector<std::shared_ptr<const LoadedKernel>> kernels_;
    DevicePointer tables_ = 0;
};

}  // namespace cuda
