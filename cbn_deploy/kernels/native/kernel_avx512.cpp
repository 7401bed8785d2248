// Compiled for AVX-512 F, BW, DQ and VL.
#define CBN_VECTOR_BYTES 64
#define CBN_REGISTERS 32
#define CBN_KERNELS kAvx512Kernels
#define CBN_TRAINING_KERNELS kAvx512TrainingKernels
#define CBN_PLANE_KERNELS kAvx512PlaneKernels
#define CBN_NAME "avx512"
#include "kernels.inc"
