// From the op's five tables to the constants that the kernels read.
#pragma once

#include <vector>

#include "kernel.h"

namespace cbn {

struct Tables {
    int components;  // M
    int channels;    // D
    std::vector<float> density, constant, affine;

    TableView view() const { return {components, channels, density.data(), constant.data(), affine.data()}; }
};

// tau (M), mean, var, scale, bias (M, D) in row-major order, 1 <= M <= kMaxComponents, D >= 1. Computed in double
// precision and rounded once. May throw std::bad_alloc.
Tables make_tables(int components, int channels, const float* tau, const float* mean, const float* var,
                   const float* scale, const float* bias, float epsilon, float density_scale);

}  // namespace cbn
