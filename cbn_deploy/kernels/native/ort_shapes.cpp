#include <exception>
#include <vector>

#include "ort_op.h"
#include "ort_tensors.h"

namespace ort {

namespace {

// Whether the input's shape is known, apart from sizes that have a name.
bool is_known(Table* api, const OrtTensorTypeAndShapeInfo* info) {
    size_t rank = 0;
    // An input of unknown rank looks like a scalar.
    if (failed(api, GetDimensionsCount::call(api, info, &rank)) || rank < 2) return false;
    std::vector<int64_t> sizes(rank, -1);
    std::vector<const char*> names(rank, "");
    if (failed(api, GetDimensions::call(api, info, sizes.data(), rank))) return false;
    if (failed(api, GetSymbolicDimensions::call(api, info, names.data(), rank))) return false;
    // onnxruntime would take a size without a name for the number -1.
    for (size_t axis = 0; axis < rank; ++axis)
        if (sizes[axis] < 0 && !*names[axis]) return false;
    return true;
}

}  // namespace

OrtStatus* infer_output_shape(const CustomOp* custom_op, OrtShapeInferContext* context) {
    Table* api = static_cast<const Op*>(custom_op)->api;
    try {
        OrtTensorTypeAndShapeInfo* x = nullptr;  // the context's own
        if (failed(api, ShapeInferGetInput::call(api, context, 0, &x)) || !is_known(api, x)) return nullptr;
        failed(api, ShapeInferSetOutput::call(api, context, 0, x));
        // The posterior stays open: nothing tells whether the node has it, and older runtimes crash if it has not.
    } catch (const std::exception&) {
        // What is not inferred here is found when the model runs.
    }
    return nullptr;
}

}  // namespace ort
