// Lets onnxruntime's CPU provider run libcbn's CUDA op, for machines without a GPU.
//
// Registers libcbn with a table that differs from onnxruntime's own in two functions: ops of the CUDA provider are added
// as the CPU's, in place of the CPU's; and the GPU's stream is an address that a test can recognize. All else is
// onnxruntime itself. LIBCBN is the path of the library.

#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "ort_abi.h"

namespace {

constexpr size_t kSlots = 275;  // as many as libcbn knows
void* real[kSlots];
void* changed[kSlots];
char stream;

OrtStatus* add_cuda_op(OrtCustomOpDomain* domain, ort::CustomOp* op) {
    if (std::strcmp(op->get_execution_provider(op), "CUDAExecutionProvider") != 0) return nullptr;
    op->get_execution_provider = [](const ort::CustomOp*) { return "CPUExecutionProvider"; };
    return ort::CustomOpDomainAdd::call(real, domain, op);
}

OrtStatus* give_stream(const OrtKernelContext*, void** result) {
    *result = &stream;
    return nullptr;
}

ort::Table* changed_api(uint32_t) { return changed; }

}  // namespace

extern "C" void* stand_in_stream() { return &stream; }

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const ort::ApiBase* base) {
    if (!changed[0]) {
        ort::Table* api = base->get_api(ort::kApiVersion);
        std::copy(api, api + kSlots, real);
        std::copy(api, api + kSlots, changed);
        changed[27] = reinterpret_cast<void*>(add_cuda_op);
        changed[193] = reinterpret_cast<void*>(give_stream);
    }
    const ort::ApiBase other{changed_api, base->get_version};
    void* library = dlopen(LIBCBN, RTLD_NOW);
    auto* function = reinterpret_cast<OrtStatus* (*)(OrtSessionOptions*, const ort::ApiBase*)>(
        library ? dlsym(library, "RegisterCustomOps") : nullptr);
    if (!function) return ort::CreateStatus::call(real, ort::kFail, "libcbn cannot be loaded.");
    return function(options, &other);
}
