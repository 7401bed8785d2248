// The instruction set that every processor of the architecture has: SSE2 on x86-64, NEON on aarch64.
#define CBN_VECTOR_BYTES 16
#define CBN_REGISTERS 16
#define CBN_KERNELS kBaselineKernels
#define CBN_TRAINING_KERNELS kBaselineTrainingKernels
#define CBN_PLANE_KERNELS kBaselinePlaneKernels
#define CBN_NAME "baseline"
#include "kernels.inc"
