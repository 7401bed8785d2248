// The one function that onnxruntime looks for in a library of custom ops.

#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "c_api.h"
#include "ort_op.h"
#include "ort_tensors.h"

namespace {

using namespace ort;

const Form kForms[] = {
    {"CompoundBatchNormalization", false, false},
    {"CompoundBatchNormalizationRelu", false, true},
    {"CompoundBatchNormalizationAddRelu", true, true},
};
const ElementType kTypes[] = {kFloat, kFloat16, kBfloat16};

// The ops of one runtime. onnxruntime keeps pointers to them for as long as any of its sessions lives, so they are made
// once a runtime and kept.
struct Domain {
    Table* api;
    OrtCustomOpDomain* domain = nullptr;
    std::vector<Op> ops;
};

OrtStatus* make_domain(Table* api, std::unique_ptr<Domain>* result) {
    auto made = std::make_unique<Domain>();
    made->api = api;
    for (const Form& form : kForms)
        for (ElementType type : kTypes) made->ops.push_back(make_op(form, type, api));
    CBN_TRY(CreateCustomOpDomain::call(api, "cbn", &made->domain));
    for (const Op& op : made->ops) CBN_TRY(CustomOpDomainAdd::call(api, made->domain, &op));
    *result = std::move(made);
    return nullptr;
}

OrtStatus* register_ops(Table* api, OrtSessionOptions* options) {
    static std::mutex mutex;
    static std::vector<std::unique_ptr<Domain>>& domains = *new std::vector<std::unique_ptr<Domain>>;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& known : domains)
        if (known->api == api) return AddCustomOpDomain::call(api, options, known->domain);
    std::unique_ptr<Domain> made;
    CBN_TRY(make_domain(api, &made));
    CBN_TRY(AddCustomOpDomain::call(api, options, made->domain));
    domains.push_back(std::move(made));
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
