// Memory for one tile, aligned as vectors should be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace cbn {

struct AlignedDelete {
    void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};
using Scratch = std::unique_ptr<float[], AlignedDelete>;

// May throw std::bad_alloc.
inline Scratch make_scratch(int64_t values) {
    void* memory = ::operator new[](static_cast<size_t>(values) * sizeof(float), std::align_val_t(64));
    return Scratch(static_cast<float*>(memory));
}

}  // namespace cbn
