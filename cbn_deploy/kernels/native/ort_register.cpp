// The one function that onnxruntime looks for in a library of custom ops.

#include <exception>
#include <iterator>
#include <memory>
#include <mutex>
#include <vector>

#include "c_api.h"
#include "ort_cuda.h"
#include "ort_op.h"
#include "ort_tensors.h"

namespace {

using namespace ort;

// Name and forms of a domain, and the element types that its ops take.
struct Family {
    const char* domain;
    Layout layout;
    std::vector<ElementType> types;
};
const Family kFamilies[] = {
    {"cbn", Layout::kPlanar, {kFloat, kFloat16, kBfloat16}},
    // Named like onnxruntime's own com.microsoft.nchwc: no exported file has these, a session's preparation puts them in.
    {"cbn.nchwc", Layout::kBlocked, {kFloat}},
    {"cbn.nhwc", Layout::kChannelsLast, {kUint8}},
};

struct Domain {
    OrtCustomOpDomain* domain = nullptr;
    std::vector<Op> ops;
};

// The ops of one runtime. onnxruntime keeps pointers to them for as long as any of its sessions lives, so they are made
// once a runtime and kept.
struct Runtime {
    Table* api;
    Domain domains[std::size(kFamilies)];
};

OrtStatus* make_domain(Table* api, const Family& family, Domain* made) {
    const Form forms[] = {
        {"CompoundBatchNormalization", false, false, family.layout},
        {"CompoundBatchNormalizationRelu", false, true, family.layout},
        {"CompoundBatchNormalizationAddRelu", true, true, family.layout},
    };
    for (const Form& form : forms)
        for (ElementType type : family.types) {
            made->ops.push_back(make_op(form, type, api));
            // Always beside the CPU's: an op that only another provider had would hide the body of the function.
            if (family.layout == Layout::kPlanar) made->ops.push_back(make_cuda_op(form, type, api));
        }
    CBN_TRY(CreateCustomOpDomain::call(api, family.domain, &made->domain));
    for (const Op& op : made->ops) CBN_TRY(CustomOpDomainAdd::call(api, made->domain, &op));
    return nullptr;
}

OrtStatus* make_runtime(Table* api, std::unique_ptr<Runtime>* result) {
    auto made = std::make_unique<Runtime>();
    made->api = api;
    for (size_t i = 0; i < std::size(kFamilies); ++i) CBN_TRY(make_domain(api, kFamilies[i], &made->domains[i]));
    *result = std::move(made);
    return nullptr;
}

OrtStatus* add_domains(const Runtime& runtime, OrtSessionOptions* options) {
    for (const Domain& domain : runtime.domains) CBN_TRY(AddCustomOpDomain::call(runtime.api, options, domain.domain));
    return nullptr;
}

OrtStatus* register_ops(Table* api, OrtSessionOptions* options) {
    static std::mutex mutex;
    static std::vector<std::unique_ptr<Runtime>>& runtimes = *new std::vector<std::unique_ptr<Runtime>>;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& known : runtimes)
        if (known->api == api) return add_domains(*known, options);
    std::unique_ptr<Runtime> made;
    CBN_TRY(make_runtime(api, &made));
    CBN_TRY(add_domains(*made, options));
    runtimes.push_back(std::move(made));
    return nullptr;
}

}  // namespace

extern "C" CBN_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const ort::ApiBase* base) {
    Table* api = base->get_api(kApiVersion);
    if (!api)
        return CreateStatus::call(base->get_api(1), kFail, "Compound batch normalization needs onnxruntime 1.17 or newer.");
    try {
        return register_ops(api, options);
    } catch (const std::exception&) {
        return CreateStatus::call(api, kFail, "Compound batch normalization: the ops cannot be registered.");
    }
}
