// The op on whole tensors: cuts work into tiles, whatever the storage type and however few pixels an image has.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace cbn {

// Numbers of ONNX's TensorProto.DataType, which onnxruntime uses as well.
enum class DataType : int32_t { kFloat32 = 1, kUint8 = 2, kFloat16 = 10, kBfloat16 = 16 };

// Contiguous tensors: x, residual and y of `type`, posterior (images, M, pixels) in float32; residual and posterior may be
// null. x, residual and y are (images, D, pixels), or, if `block` is not 0, blocked: (images, channels / block, pixels,
// block), where channels is D rounded up to a multiple of the block. Blocked tensors are float32.
// Of type uint8 they are (images, pixels, D), stand for the numbers that their quanta say, and have no posterior.
struct Tensors {
    DataType type;
    int64_t images;
    int64_t pixels;
    const void* x;
    const void* residual;
    void* y;
    float* posterior;
    bool relu;
    int block;
    Quantum x_quantum, residual_quantum, y_quantum;  // of type uint8 only
};

// Whether `kernels` can work on blocked tensors with this many channels a block.
bool takes_block(const Kernels& kernels, int64_t block);

// Whether `kernels` can work on channels-last tensors with this many channels.
bool takes_channels_last(const Kernels& kernels, int64_t channels);
bool is_valid(const Quantum& quantum);

// Computes the pixels numbered begin <= n < end, where pixel n is pixel n % pixels of image n / pixels. Ranges that do
// not overlap may run at the same time. May throw std::bad_alloc.
void forward(const Kernels& kernels, const TableView& tables, const Tensors& tensors, int64_t begin, int64_t end);

// The same for type uint8.
void forward_quantized(const Kernels& kernels, const TableView& tables, const Tensors& tensors, int64_t begin,
                       int64_t end);

// Into how many ranges the work is worth cutting, at most `limit`; 1 if a hand-over to other threads would cost more
// than it saves.
int64_t worthwhile_ranges(const TableView& tables, const Tensors& tensors, int64_t limit);

// Range `index` of `count` as [begin, end), cut where tiles meet.
struct Range {
    int64_t begin, end;
};
Range range(const Tensors& tensors, int64_t index, int64_t count);

}  // namespace cbn
