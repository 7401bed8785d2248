// From the op's five tables to the constants that the kernels read.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

#include "kernel.h"

namespace cbn {

// Memory that begins where a cache line does, as vectors should.
template <typename T>
struct LineAllocator {
    using value_type = T;
    LineAllocator() = default;
    template <typename U>
    LineAllocator(const LineAllocator<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t(64)); }
    bool operator==(const LineAllocator&) const { return true; }
    bool operator!=(const LineAllocator&) const { return false; }
};
using AlignedFloats = std::vector<float, LineAllocator<float>>;

struct Tables {
    int components;  // M
    int channels;    // D
    std::vector<float> density, constant, affine;
    AlignedFloats density_groups, affine_groups;

    TableView view() const {
        return {components,    channels, density.data(), constant.data(), affine.data(), density_groups.data(),
                affine_groups.data()};
    }
};

// tau (M), mean, var, scale, bias (M, D) in row-major order, 1 <= M <= kMaxComponents, D >= 1. Computed in double
// precision and rounded once. May throw std::bad_alloc.
Tables make_tables(int components, int channels, const float* tau, const float* mean, const float* var,
                   const float* scale, const float* bias, float epsilon, float density_scale);

}  // namespace cbn
