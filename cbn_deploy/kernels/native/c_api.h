/* libcbn's C interface. Plain C; thread-safe, except that a layer must not be destroyed while it is used.
 *
 * Functions that can fail return NULL on success or one sentence that says what is wrong; the sentence is a constant and
 * must not be freed. Nothing is ever thrown or printed. */
#ifndef CBN_C_API_H
#define CBN_C_API_H

#include <stdint.h>

#if defined(_WIN32)
#define CBN_EXPORT __declspec(dllexport)
#else
#define CBN_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The number of this interface: raised whenever a structure or a function below changes, here and in
 * cbn_deploy/native_interface.py, which describes them to Python. A library of another number is not used. */
#define CBN_ABI 1

/* CBN_ABI of the header that the library was built with. */
CBN_EXPORT int cbn_abi(void);

/* One layer's constants. */
typedef struct cbn_layer cbn_layer;

/* What an 8-bit number n stands for: scale * (n - zero). */
typedef struct cbn_quantum {
    float scale;  /* above zero and finite */
    int32_t zero; /* 0 to 255 */
} cbn_quantum;

/* Contiguous tensors: x, residual and y (images, D, pixels); posterior (images, M, pixels), float32.
 * type: 1 float32, 2 uint8, 10 float16, 16 bfloat16 (ONNX's numbers). residual and posterior may be NULL. y may be x.
 * block: 0, or 8 or 16 for float32 tensors in blocks of that many channels, (images, ceil(D / block), pixels, block).
 * uint8: x, residual and y are (images, pixels, D), D a multiple of 4 (baseline), 8 (avx2) or 16 (avx512), and stand for
 * the numbers that their quanta say; y is rounded to nearest, ties to even, and saturates; there is no posterior. */
typedef struct cbn_tensors {
    int32_t type;
    int32_t relu;
    int64_t images;
    int64_t pixels;
    const void* x;
    const void* residual;
    void* y;
    float* posterior;
    int64_t block;
    cbn_quantum x_quantum, residual_quantum, y_quantum; /* read for uint8 only */
} cbn_tensors;

/* Version of the library: that of the package it was built with. */
CBN_EXPORT const char* cbn_version(void);

/* "avx512", "avx2" or "baseline": what layers use when they are created without a name; NULL if the environment
 * variable CBN_INSTRUCTION_SET names something that cannot run here. */
CBN_EXPORT const char* cbn_instruction_set(void);

/* tau (M), mean, var, scale, bias (M, D), row-major, copied. instruction_set: a name, or NULL for
 * cbn_instruction_set(). On success *layer is set; free it with cbn_layer_destroy. */
CBN_EXPORT const char* cbn_layer_create(int64_t components, int64_t channels, const float* tau, const float* mean,
                                        const float* var, const float* scale, const float* bias, float epsilon,
                                        float density_scale, const char* instruction_set, cbn_layer** layer);

/* layer may be NULL. */
CBN_EXPORT void cbn_layer_destroy(cbn_layer* layer);

/* Computes the pixels numbered begin <= n < end of images * pixels; the whole tensor is 0, images * pixels. Ranges that
 * do not overlap may run in different threads at the same time. */
CBN_EXPORT const char* cbn_layer_forward(const cbn_layer* layer, const cbn_tensors* tensors, int64_t begin,
                                         int64_t end);

/* One pass of a training step over the pixels (training_kernel.h says what each computes): 0 expectation, 1 combine,
 * 2 sums of the output's gradient, 3 gradient of the input. Contiguous float32: x, grad and result (images, channels,
 * pixels), posterior (images, components, pixels), table (channels, row), constant (components), sums
 * (cbn_training_chunks, length); what a pass does not use is NULL. */
typedef struct cbn_training {
    int32_t step;
    int32_t components; /* 1 to 8 */
    int64_t channels;
    int64_t images;
    int64_t pixels;
    const float* table;
    const float* constant;
    const float* x;
    const float* grad;
    float* posterior;
    float* result;
    float* sums;
} cbn_training;

/* Calls body(data) in `threads` threads, among them the calling one, and returns when all have: the signature of
 * GOMP_parallel, through which the caller's OpenMP runtime lends its threads. */
typedef void (*cbn_parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

/* Rows of `sums`: depends on nothing but the sizes, and so does what is computed. */
CBN_EXPORT int64_t cbn_training_chunks(int64_t images, int64_t pixels);

/* instruction_set as in cbn_layer_create. parallel may be NULL: the calling thread does everything. */
CBN_EXPORT const char* cbn_training_run(const cbn_training* arguments, const char* instruction_set,
                                        cbn_parallel parallel, int32_t threads);

/* One pass of a split-path training step over planes (plane_kernel.h says what each computes): 0 moments, 1 sums of the
 * output's gradient, 2 affine. Contiguous float32: x, grad and result (planes, pixels), table (planes, 4), sums
 * (planes, 2); what a pass does not use is NULL. */
typedef struct cbn_planes {
    int32_t step;
    int64_t planes;
    int64_t pixels;
    const float* table;
    const float* x;
    const float* grad;
    float* result;
    float* sums;
} cbn_planes;

/* As cbn_training_run. */
CBN_EXPORT const char* cbn_planes_run(const cbn_planes* arguments, const char* instruction_set, cbn_parallel parallel,
                                      int32_t threads);

/* A compiled CUDA kernel of the layer and how to launch it (docs/gpu.md, "PTX and its launch contract"), for contiguous
 * (images, D, pixels) tensors. type as in cbn_tensors; residual, relu, posterior and full are 0 or 1.
 * most_channels: D is at most this; exactly this if full. vector divides the pixels of an image. A grid has
 * ceil(images * pixels / block_pixels) blocks of `threads` threads and shared_bytes of dynamic shared memory. */
typedef struct cbn_cuda_kernel {
    int32_t type;
    int32_t residual;
    int32_t relu;
    int32_t posterior;
    int32_t full;
    int32_t components;
    int32_t most_channels;
    int32_t vector;
    int32_t block_pixels;
    int32_t threads;
    int32_t shared_bytes;
    const char* entry;
    const char* ptx;
} cbn_cuda_kernel;

/* Makes the kernel known to the op's nodes that onnxruntime creates from now on; the texts are copied. One with the same
 * use (all numbers but threads and shared_bytes) is replaced. Needs no GPU. */
CBN_EXPORT const char* cbn_cuda_register_kernel(const cbn_cuda_kernel* kernel);

#ifdef __cplusplus
}
#endif

#endif
