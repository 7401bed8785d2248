// What a kernel compiled for one instruction set offers, and what it works on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cbn {

// The op's constants as the kernels read them (tables.h makes them). Every channel has one row in each table; a row
// begins with the channel's centre m0, so that either pass over the channels reads one stream.
struct TableView {
    int components;         // M
    int channels;           // D
    const float* density;   // D rows [m0, P_1 .. P_M, Q_1 .. Q_M]: logit_j = constant_j + sum_d (P_j c + Q_j) c
    const float* constant;  // M
    const float* affine;    // D rows [m0, A_1 .. A_M, B_1 .. B_M]: y = sum_j w_j (A_j c + B_j), c = x - m0
    // The same two tables for kernels whose vectors are channels: for every kGroup channels, the values m0 of all of
    // them, then P_1 of all of them, and so on; zeros where the last group has no channel.
    const float* density_groups;
    const float* affine_groups;
};
constexpr int kGroup = 16;

// Neighbouring pixels: element (channel d, pixel p) of x is x[d * x_stride + p], and so on. y may be x.
struct Tile {
    const float* x;
    ptrdiff_t x_stride;
    const float* residual;  // added before the activation; null: nothing
    ptrdiff_t residual_stride;
    float* y;
    ptrdiff_t y_stride;
    float* posterior;  // element (component j, pixel p); null: not wanted
    ptrdiff_t posterior_stride;
    int vectors;  // how many times `lanes` pixels
    bool relu;
};

// Neighbouring pixels in blocks of neighbouring channels: element (channel d, pixel p) of x, residual and y is at
// (d / block) * block_stride + p * block + d % block. y may be x.
struct BlockedTile {
    const float* x;
    const float* residual;  // added before the activation; null: nothing
    float* y;
    float* posterior;  // element (component j, pixel p) at j * posterior_stride + p; null: not wanted
    ptrdiff_t posterior_stride;
    ptrdiff_t block_stride;
    int block;     // a multiple of `lanes`
    int channels;  // a multiple of `block`: D, or more, filled up with zeros
    int pixels;
    bool relu;
    bool ahead;  // the tensors are too large to be in the caches
};

// What an 8-bit number n stands for: scale * (n - zero). scale is above zero, zero one of 0 to 255.
struct Quantum {
    float scale;
    int32_t zero;
};

// More components than these have no kernel: their logits are kept on the stack.
constexpr int kMaxComponents = 256;

struct Kernels {
    const char* name;  // of the instruction set
    int lanes;         // pixels of one vector
    void (*forward)(const TableView& tables, const Tile& tile);
    void (*forward_blocked)(const TableView& tables, const BlockedTile& tile);
    void (*widen_float16)(const uint16_t* stored, float* values, int count);
    void (*widen_bfloat16)(const uint16_t* stored, float* values, int count);
    void (*narrow_float16)(const float* values, uint16_t* stored, int count);
    void (*narrow_bfloat16)(const float* values, uint16_t* stored, int count);
    void (*widen_uint8)(const uint8_t* stored, float* values, int count, Quantum quantum);
    // To nearest, ties to even; what is out of range becomes the nearest that is not, NaN becomes quantum.zero.
    void (*narrow_uint8)(const float* values, uint8_t* stored, int count, Quantum quantum);
};

extern const Kernels kBaselineKernels;
#ifdef CBN_X86_KERNELS
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace cbn
