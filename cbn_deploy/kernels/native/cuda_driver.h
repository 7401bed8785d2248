// The part of the CUDA driver's interface that libcbn uses, found at run time: building needs no CUDA toolkit.
//
// Names, order of arguments and numbers are those of cuda.h, the driver API's header. The driver exports functions whose
// signature once changed under a name with a version (cuMemAlloc_v2), and keeps old names for ever.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace cuda {

using Result = int;                        // CUresult, an enum; 0 is CUDA_SUCCESS
using Device = int;                        // CUdevice
using DevicePointer = unsigned long long;  // CUdeviceptr on 64-bit systems
struct Context;                            // CUctx_st, behind CUcontext
struct Module;                             // CUmod_st, behind CUmodule
struct Function;                           // CUfunc_st, behind CUfunction
struct Stream;                             // CUstream_st, behind CUstream; a cudaStream_t is the same pointer

constexpr int kMaxDynamicSharedSizeBytes = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

struct Driver {
    Result (*init)(unsigned flags);                                       // cuInit
    Result (*error_string)(Result error, const char** text);              // cuGetErrorString
    Result (*context_get_current)(Context** context);                     // cuCtxGetCurrent
    Result (*context_push)(Context* context);                             // cuCtxPushCurrent_v2
    Result (*context_pop)(Context** context);                             // cuCtxPopCurrent_v2
    Result (*context_synchronize)();                                      // cuCtxSynchronize
    Result (*device_get)(Device* device, int ordinal);                    // cuDeviceGet
    Result (*primary_context_retain)(Context** context, Device device);   // cuDevicePrimaryCtxRetain
    Result (*module_load)(Module** module, const void* image);            // cuModuleLoadData
    Result (*module_unload)(Module* module);                              // cuModuleUnload
    Result (*get_function)(Function**, Module*, const char* name);        // cuModuleGetFunction
    Result (*set_attribute)(Function*, int attribute, int value);         // cuFuncSetAttribute
    Result (*allocate)(DevicePointer* pointer, size_t bytes);             // cuMemAlloc_v2
    Result (*free)(DevicePointer pointer);                                // cuMemFree_v2
    Result (*copy_to_device)(DevicePointer, const void*, size_t bytes);   // cuMemcpyHtoD_v2
    // cuLaunchKernel: grid, block, dynamic shared memory, stream, addresses of the parameters, null
    Result (*launch)(Function*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared_bytes,
                     Stream*, void** parameters, void** extra);
};

// One clause that says what is wrong and what to do.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The driver, loaded and initialized at the first call that succeeds: the library that the environment variable
// CBN_CUDA_DRIVER names, or the system's. Throws Error.
const Driver& driver();

// Throws Error, "WHAT (the driver's own words)", unless `result` is success.
void check(const Driver& driver, Result result, const std::string& what);

// Makes a context the calling thread's own for as long as it lives. Throws Error.
class ContextScope {
public:
    ContextScope(const Driver& driver, Context* context);
    ~ContextScope();
    ContextScope(const ContextScope&) = delete;
    ContextScope& operator=(const ContextScope&) = delete;

private:
    const Driver& driver_;
};

// The calling thread's context, which onnxruntime sets to its GPU's when it makes a session; where there is none, that of
// the first GPU.
Context* current_context(const Driver& driver);

}  // namespace cuda
