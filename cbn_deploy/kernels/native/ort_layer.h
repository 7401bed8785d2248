// What every kernel of the op reads from its node, wherever it then computes.
#pragma once

#include <exception>
#include <memory>
#include <new>
#include <string>

#include "ort_op.h"
#include "ort_tensors.h"
#include "tables.h"

namespace ort {

struct Layer {
    Table* api;
    Form form;
    float epsilon = 1e-5f;
    float density_scale = 1.0f;
};

// A status: the form's name and what is wrong.
OrtStatus* invalid(Table* api, const Form& form, const std::string& what);

// Runs `function`, which returns a status and may throw.
template <typename Function>
OrtStatus* guarded(Table* api, const Form& form, Function function) {
    try {
        return function();
    } catch (const std::bad_alloc&) {
        return CreateStatus::call(api, kFail, "Compound batch normalization: there is not enough memory.");
    } catch (const std::exception& error) {
        return invalid(api, form, std::string(error.what()) + ".");
    }
}

// Leaves `value` as it is if the node does not have the attribute.
OrtStatus* read_attribute(const OrtKernelInfo* info, const Layer& layer, const char* name, float* value);

// Sets epsilon and density_scale.
OrtStatus* read_attributes(const OrtKernelInfo* info, Layer* layer);

// From tau, mean, var, scale and bias. May throw std::bad_alloc.
OrtStatus* tables_from(const Layer& layer, const Tensor (&inputs)[5], std::unique_ptr<const cbn::Tables>* tables);

// Leaves `tables` null if the graph computes them. May throw std::bad_alloc.
OrtStatus* read_constant_tables(const OrtKernelInfo* info, const Layer& layer,
                                std::unique_ptr<const cbn::Tables>* tables);

OrtStatus* read_input(const Layer& layer, const OrtKernelContext* context, size_t index, Tensor* tensor);

// Leaves `data` null if the node does not have that output.
OrtStatus* make_output(const Layer& layer, OrtKernelContext* context, size_t index, const std::vector<int64_t>& shape,
                       void** data);

// Y like X, and the posterior where the node has it; what it has not stays null.
OrtStatus* make_outputs(const Layer& layer, OrtKernelContext* context, const std::vector<int64_t>& shape,
                        int64_t components, void** y, void** posterior);

// X, and the residual if the form has one; checked against each other and the channels that X must have.
OrtStatus* read_data(const Layer& layer, const OrtKernelContext* context, int64_t channels, Tensor* x, Tensor* residual);

// Product of the spatial axes.
int64_t pixels_of(const Layer& layer, const Tensor& x);

}  // namespace ort
