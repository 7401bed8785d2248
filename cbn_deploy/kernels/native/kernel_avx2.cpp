// Compiled for AVX2, FMA and F16C.
#define CBN_VECTOR_BYTES 32
#define CBN_REGISTERS 16
#define CBN_KERNELS kAvx2Kernels
#define CBN_TRAINING_KERNELS kAvx2TrainingKernels
#define CBN_PLANE_KERNELS kAvx2PlaneKernels
#define CBN_NAME "avx2"
#include "kernels.inc"
