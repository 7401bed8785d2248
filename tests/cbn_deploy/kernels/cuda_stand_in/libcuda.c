/* A stand-in for NVIDIA's libcuda, for machines without a GPU: what libcbn calls, with the host's memory as the GPU's.
 *
 * A module is any text with an .entry line; a launch computes the layer from the parameters alone, in double precision,
 * for the pixels that the grid covers. What the kernel is for, its name says (KernelSpec.name). It proves what libcbn
 * passes to the driver, and nothing about GPUs. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500 };
enum { FLOAT32, FLOAT16, BFLOAT16 };

/* What happened, for the tests. */
struct record {
    long modules_loaded, modules_alive, allocations, allocations_alive, launches, synchronizations, contexts_retained;
    long grid, block, shared_bytes, granted_shared_bytes, parameters;
    void* stream;
    long images, channels, pixels;
    char entry[256];
};
struct record stand_in_record;
#define R stand_in_record

struct module {
    char entry[256];
    char types[16]; /* of the parameters: p a pointer, i an int32 */
};

static _Thread_local void* contexts[16];
static _Thread_local int depth;
static int context_memory; /* its address is the one context */

static const char* setting(const char* name) {
    const char* value = getenv(name);
    return value && *value ? value : NULL;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : setting("STAND_IN_NO_GPU") ? NO_DEVICE : SUCCESS; }

int cuGetErrorString(int error, const char** text) {
    *text = error == NO_DEVICE       ? "no CUDA-capable device is detected"
            : error == INVALID_IMAGE ? "device kernel image is invalid"
            : error == NOT_FOUND     ? "named symbol not found"
                                     : "another error";
    return SUCCESS;
}

static void* current(void) {
    return depth ? contexts[depth - 1] : setting("STAND_IN_NO_CONTEXT") ? NULL : &context_memory;
}

int cuCtxGetCurrent(void** context) {
    *context = current();
    return SUCCESS;
}

int cuCtxPushCurrent_v2(void* context) {
    if (context != &context_memory || depth == 16) return INVALID_CONTEXT;
    contexts[depth++] = context;
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void** context) {
    if (!depth) return INVALID_CONTEXT;
    *context = contexts[--depth];
    return SUCCESS;
}

int cuCtxSynchronize(void) {
    if (!current()) return INVALID_CONTEXT;
    ++R.synchronizations;
    return SUCCESS;
}

int cuDeviceGet(int* device, int ordinal) {
    *device = 7;
    return ordinal == 0 ? SUCCESS : INVALID_VALUE;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
    if (device != 7) return INVALID_VALUE;
    ++R.contexts_retained;
    *context = &context_memory;
    return SUCCESS;
}

int cuModuleLoadData(void** result, const void* image) {
    if (!current()) return INVALID_CONTEXT;
    const char* at = strstr(image, ".entry ");
    struct module* module = calloc(1, sizeof *module);
    if (!at || sscanf(at, ".entry %255[A-Za-z0-9_]", module->entry) != 1) {
        free(module);
        return INVALID_IMAGE;
    }
    const char* end = strchr(at, ')');
    size_t count = 0;
    while ((at = strstr(at, ".param .")) && at < end && count < sizeof module->types - 1) {
        at += strlen(".param .");
        module->types[count++] = strncmp(at, "u32", 3) ? 'p' : 'i';
    }
    ++R.modules_loaded;
    ++R.modules_alive;
    *result = module;
    return SUCCESS;
}

int cuModuleUnload(void* module) {
    if (!current()) return INVALID_CONTEXT;
    --R.modules_alive;
    free(module);
    return SUCCESS;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    *function = module;
    return strcmp(((struct module*)module)->entry, name) ? NOT_FOUND : SUCCESS;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
    if (!current()) return INVALID_CONTEXT;
    if (!function || attribute != 8) return INVALID_VALUE;
    R.granted_shared_bytes = value;
    return SUCCESS;
}

int cuMemAlloc_v2(unsigned long long* pointer, size_t bytes) {
    if (!current()) return INVALID_CONTEXT;
    void* memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    ++R.allocations;
    ++R.allocations_alive;
    *pointer = (uintptr_t)memory;
    return SUCCESS;
}

int cuMemFree_v2(unsigned long long pointer) {
    if (!current()) return INVALID_CONTEXT;
    --R.allocations_alive;
    free((void*)(uintptr_t)pointer);
    return SUCCESS;
}

int cuMemcpyHtoD_v2(unsigned long long to, const void* from, size_t bytes) {
    if (!current()) return INVALID_CONTEXT;
    memcpy((void*)(uintptr_t)to, from, bytes);
    return SUCCESS;
}

static float read_value(const void* data, int64_t at, int type) {
    if (type == FLOAT32) return ((const float*)data)[at];
    if (type == FLOAT16) return (float)((const _Float16*)data)[at];
    const uint32_t bits = (uint32_t)((const uint16_t*)data)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void write_value(void* data, int64_t at, int type, double exact) {
    const float value = (float)exact;
    if (type == FLOAT32) {
        ((float*)data)[at] = value;
    } else if (type == FLOAT16) {
        ((_Float16*)data)[at] = (_Float16)value;
    } else {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        const uint32_t rounded = isnan(value) ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1);
        ((uint16_t*)data)[at] = (uint16_t)(rounded >> 16);
    }
}

struct layer {
    int type, relu;
    int64_t components, channels, pixels;
    const void *x, *residual;
    const float* tables;
    void* y;
    float* posterior;
};

/* One pixel, whose channel 0 is element `base`. */
static void compute_pixel(const struct layer* l, int64_t image, int64_t pixel) {
    const int64_t M = l->components, D = l->channels, base = image * D * l->pixels + pixel;
    const float *m0 = l->tables, *k = l->tables + (1 + 4 * M) * D;
    double w[64], highest = -INFINITY, total = 0.0;
    for (int64_t j = 0; j < M; ++j) {
        const float *P = m0 + (1 + 4 * j) * D, *Q = P + D;
        w[j] = k[j];
        for (int64_t d = 0; d < D; ++d) {
            const double c = read_value(l->x, base + d * l->pixels, l->type) - (double)m0[d];
            w[j] += c * (P[d] * c + Q[d]);
        }
        highest = w[j] > highest || isnan(w[j]) ? w[j] : highest;
    }
    for (int64_t j = 0; j < M; ++j) total += w[j] = exp2(w[j] - highest);
    for (int64_t j = 0; j < M; ++j) {
        w[j] /= total;
        if (l->posterior) l->posterior[(image * M + j) * l->pixels + pixel] = (float)w[j];
    }
    for (int64_t d = 0; d < D; ++d) {
        const int64_t at = base + d * l->pixels;
        const double c = read_value(l->x, at, l->type) - (double)m0[d];
        double y = l->residual ? read_value(l->residual, at, l->type) : 0.0;
        for (int64_t j = 0; j < M; ++j) y += w[j] * (c * m0[(3 + 4 * j) * D + d] + m0[(4 + 4 * j) * D + d]);
        write_value(l->y, at, l->type, l->relu && y < 0.0 ? 0.0 : y);
    }
}

/* The number that follows `mark` in a kernel's name. */
static long number_after(const char* name, const char* mark) {
    while ((name = strstr(name, mark))) {
        name += strlen(mark);
        if (*name >= '0' && *name <= '9') return atol(name);
    }
    return 0;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                   void** extra) {
    const struct module* module = function;
    if (!current()) return INVALID_CONTEXT;
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || extra) return INVALID_VALUE;
    struct layer l = {.type = strstr(module->entry, "bfloat16") ? BFLOAT16
                              : strstr(module->entry, "float16") ? FLOAT16
                                                                 : FLOAT32,
                      .relu = strstr(module->entry, "_relu") != NULL,
                      .components = number_after(module->entry, "_m")};
    int64_t integers[3], pixel_count;
    void* pointers[8];
    int pointer_count = 0, integer_count = 0, inputs = 0;
    for (const char* type = module->types; *type; ++type) {
        if (*type == 'i') {
            inputs = integer_count ? inputs : pointer_count;
            integers[integer_count++] = *(int32_t*)*parameters++;
        } else {
            memcpy(&pointers[pointer_count++], *parameters++, sizeof(void*));
        }
    }
    if (integer_count != 3 || inputs < 2 || inputs > 3 || pointer_count - inputs < 1) return INVALID_VALUE;
    pixel_count = integers[0], l.channels = integers[1], l.pixels = integers[2];
    l.x = pointers[0];
    l.residual = inputs == 3 ? pointers[1] : NULL;
    l.tables = pointers[inputs - 1];
    l.y = pointers[inputs];
    l.posterior = pointer_count - inputs == 2 ? pointers[inputs + 1] : NULL;
    const int64_t covered = (int64_t)grid_x * number_after(module->entry, "_p");
    for (int64_t n = 0; n < pixel_count && n < covered; ++n) compute_pixel(&l, n / l.pixels, n % l.pixels);
    ++R.launches;
    R.grid = grid_x, R.block = block_x, R.shared_bytes = shared_bytes, R.stream = stream;
    R.parameters = integer_count + pointer_count;
    R.images = pixel_count / l.pixels, R.channels = l.channels, R.pixels = l.pixels;
    strcpy(R.entry, module->entry);
    return SUCCESS;
}
