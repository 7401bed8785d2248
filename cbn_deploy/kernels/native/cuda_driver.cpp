#include "cuda_driver.h"

#include <cstdlib>
#include <memory>
#include <mutex>

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace cuda {

namespace {

#if defined(_WIN32)
const char* const kLibrary = "nvcuda.dll";
void* open_library(const char* name) { return reinterpret_cast<void*>(LoadLibraryA(name)); }
void* find(void* library, const char* name) {
    return reinterpret_cast<void*>(GetProcAddress(reinterpret_cast<HMODULE>(library), name));
}
#else
const char* const kLibrary = "libcuda.so.1";
void* open_library(const char* name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
void* find(void* library, const char* name) { return dlsym(library, name); }
#endif

template <typename Pointer>
void bind(void* library, const char* name, Pointer* function) {
    void* found = find(library, name);
    if (!found) throw Error(std::string("the CUDA driver has no ") + name + "; update the NVIDIA driver to 525 or newer");
    *function = reinterpret_cast<Pointer>(found);
}

// The library stays loaded for good: kernels on the GPU may outlive every session.
std::unique_ptr<const Driver> load() {
    const char* given = std::getenv("CBN_CUDA_DRIVER");
    const std::string name = given && *given ? given : kLibrary;
    void* library = open_library(name.c_str());
    if (!library)
        throw Error("the CUDA driver (" + name +
                    ") cannot be loaded; install the NVIDIA driver, or give its path in CBN_CUDA_DRIVER");
    auto made = std::make_unique<Driver>();
    bind(library, "cuInit", &made->init);
    bind(library, "cuGetErrorString", &made->error_string);
    bind(library, "cuCtxGetCurrent", &made->context_get_current);
    bind(library, "cuCtxPushCurrent_v2", &made->context_push);
    bind(library, "cuCtxPopCurrent_v2", &made->context_pop);
    bind(library, "cuCtxSynchronize", &made->context_synchronize);
    bind(library, "cuDeviceGet", &made->device_get);
    bind(library, "cuDevicePrimaryCtxRetain", &made->primary_context_retain);
    bind(library, "cuModuleLoadData", &made->module_load);
    bind(library, "cuModuleUnload", &made->module_unload);
    bind(library, "cuModuleGetFunction", &made->get_function);
    bind(library, "cuFuncSetAttribute", &made->set_attribute);
    bind(library, "cuMemAlloc_v2", &made->allocate);
    bind(library, "cuMemFree_v2", &made->free);
    bind(library, "cuMemcpyHtoD_v2", &made->copy_to_device);
    bind(library, "cuLaunchKernel", &made->launch);
    check(*made, made->init(0), "the CUDA driver finds no GPU to work with; see what nvidia-smi says");
    return made;
}

}  // namespace

const Driver& driver() {
    static std::mutex mutex;
    static const Driver* loaded = nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!loaded) loaded = load().release();
    return *loaded;
}

void check(const Driver& driver, Result result, const std::string& what) {
    if (result == 0) return;
    const char* text = nullptr;
    if (driver.error_string(result, &text) != 0 || !text) text = "unknown error";
    throw Error(what + " (CUDA error " + std::to_string(result) + ": " + text + ")");
}

ContextScope::ContextScope(const Driver& driver, Context* context) : driver_(driver) {
    check(driver, driver.context_push(context), "the GPU's context cannot be used");
}

ContextScope::~ContextScope() {
    Context* popped = nullptr;
    driver_.context_pop(&popped);
}

Context* current_context(const Driver& driver) {
    Context* context = nullptr;
    check(driver, driver.context_get_current(&context), "the CUDA driver does not tell the thread's context");
    if (context) return context;
    Device device = 0;
    check(driver, driver.device_get(&device, 0), "the CUDA driver finds no GPU; see what nvidia-smi says");
    // Never released: onnxruntime keeps this context, the runtime API's own, to the end of the process as well.
    check(driver, driver.primary_context_retain(&context, device), "the first GPU cannot be used");
    return context;
}

}  // namespace cuda
