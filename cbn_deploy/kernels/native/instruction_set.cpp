#include "instruction_set.h"

#include <cstdlib>
#include <cstring>

namespace cbn {

namespace {

bool runs_here(const Kernels& kernels) {
#ifdef CBN_X86_KERNELS
    __builtin_cpu_init();
    if (&kernels == &kAvx512Kernels)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (&kernels == &kAvx2Kernels) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return &kernels == &kBaselineKernels;
}

// The fastest first.
const Kernels* const kAll[] = {
#ifdef CBN_X86_KERNELS
    &kAvx512Kernels,
    &kAvx2Kernels,
#endif
    &kBaselineKernels,
};

}  // namespace

const Kernels* kernels_by_name(const char* name) {
    for (const Kernels* kernels : kAll)
        if (std::strcmp(kernels->name, name) == 0) return runs_here(*kernels) ? kernels : nullptr;
    return nullptr;
}

const Kernels* best_kernels() {
    for (const Kernels* kernels : kAll)
        if (runs_here(*kernels)) return kernels;
    return &kBaselineKernels;
}

const Kernels* chosen_kernels() {
    const char* name = std::getenv("CBN_INSTRUCTION_SET");
    return name && *name ? kernels_by_name(name) : best_kernels();
}

}  // namespace cbn
