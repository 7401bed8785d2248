// The passes of a training step over pixels, as compiled for one instruction set (training_tile.inc).
#pragma once

#include <cstddef>

namespace cbn {

// More components than these have no training kernel.
constexpr int kMaxTrainingComponents = 8;

// What a pass does. c = x - centre; tables have one row a channel, which begins with the centre.
enum class TrainingStep : int {
    // Rows [centre, Q_1 .. Q_M, L_1 .. L_M]: w = softmax_j( constant_j + sum_d (Q_j c + L_j) c ), and
    // sums += [w_j (M) | w_j c (D, M) | w_j c^2 (D, M)].
    kExpectation = 0,
    // Rows [centre, A_1 .. A_M, B_1 .. B_M]: result = sum_j w_j (A_j c + B_j).
    kCombine = 1,
    // Rows [centre]: sums += [w_j c g (D, M) | w_j g (D, M)].
    kOutputSums = 2,
    // Rows [centre, A (M), B (M), U (M), V (M), Q (M), L (M)]: G_j = constant_j + sum_d [ (A_j g + U_j c + V_j) c + B_j g ],
    // h_j = w_j (G_j - sum_k w_k G_k), result = g sum_j A_j w_j + c sum_j (2 U_j w_j + Q_j h_j) + sum_j (V_j w_j + L_j h_j).
    kInputGradient = 3,
};

// Pixels side by side: element (row r, pixel p) of an array is array[r * its stride + p].
struct TrainingTile {
    int components, channels;
    const float* table;
    const float* constant;
    const float* x;
    const float* grad;
    float* result;
    ptrdiff_t stride;  // of x, grad and result, which have one row a channel
    float* posterior;  // w, one row a component: written by kExpectation, read by the others
    ptrdiff_t posterior_stride;
    int vectors;  // how many times `lanes` pixels
    int live;     // how many of those pixels exist; the rest, at the end, must be given weight 0
    float* sums;  // in lanes: element i of the sums above is the sum of sums[i * lanes] to sums[i * lanes + lanes - 1]
};

struct TrainingKernels {
    int lanes;
    void (*steps[4])(const TrainingTile& tile);  // by TrainingStep
};

extern const TrainingKernels kBaselineTrainingKernels;
#ifdef CBN_X86_KERNELS
extern const TrainingKernels kAvx2TrainingKernels;
extern const TrainingKernels kAvx512TrainingKernels;
#endif

}  // namespace cbn
