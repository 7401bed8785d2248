// A training step's passes over whole tensors: cuts them into chunks, each computed by one thread.
#pragma once

#include <cstdint>

#include "kernel.h"
#include "plane_kernel.h"
#include "training_kernel.h"

namespace cbn {

// Contiguous float32: x, grad and result (images, channels, pixels), posterior (images, components, pixels). What a step
// does not use may be null. sums: one row a chunk.
struct TrainingTensors {
    int components, channels;
    int64_t images, pixels;
    const float* table;
    const float* constant;
    const float* x;
    const float* grad;
    float* posterior;
    float* result;
    float* sums;
};

// Those of the same instruction set.
const TrainingKernels& training_kernels(const Kernels& kernels);
const PlaneKernels& plane_kernels(const Kernels& kernels);

// The same for any number of threads: so is what is computed.
int64_t training_chunks(int64_t images, int64_t pixels);

// Numbers in one row of a step's sums; 0 for a step without.
int64_t sums_length(TrainingStep step, int components, int channels);

// One of training_chunks(); different chunks may run at the same time. May throw std::bad_alloc.
void run_chunk(const TrainingKernels& kernels, TrainingStep step, const TrainingTensors& tensors, int64_t chunk);

// The same for planes, which need no memory.
int64_t plane_chunks(const Planes& planes);
void run_plane_chunk(const PlaneKernels& kernels, PlaneStep step, const Planes& planes, int64_t chunk);

}  // namespace cbn
