// The split path's passes over planes (one channel of one image), as compiled for one instruction set (plane_tile.inc).
#pragma once

#include <cstddef>

namespace cbn {

// What a pass does to every plane. c = x - centre, g the gradient of the output, P the pixels of a plane.
enum class PlaneStep : int {
    kMoments = 0,       // sums = [mean of x, mean of (x - mean)^2]
    kGradientSums = 1,  // table [centre]; sums = [sum of c g, sum of g]
    kAffine = 2,        // table [centre, slope, offset, gain]: result = slope c + offset, + gain g if there is a gradient
};

constexpr int kPlaneSums = 2;
constexpr int kPlaneTable = 4;  // numbers of a plane in the table, whatever the pass reads of them

// Planes one after the other: plane i begins at element i * pixels.
struct Planes {
    ptrdiff_t planes, pixels;
    const float* table;
    const float* x;
    const float* grad;
    float* result;
    float* sums;
};

struct PlaneKernels {
    void (*steps[3])(const Planes& planes);  // by PlaneStep
};

extern const PlaneKernels kBaselinePlaneKernels;
#ifdef CBN_X86_KERNELS
extern const PlaneKernels kAvx2PlaneKernels;
extern const PlaneKernels kAvx512PlaneKernels;
#endif

}  // namespace cbn
