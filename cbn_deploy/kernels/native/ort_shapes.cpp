#include <exception>
#include <vector>

#include "ort_op.h"
#include "ort_tensors.h"

namespace ort {

namespace {

struct Shape {
    ElementType type;
    std::vector<int64_t> sizes;
    std::vector<const char*> names;  // of dimensions whose size is open
};

// Whether the shape of input `index` is known, apart from sizes that have a name.
bool read_shape(Table* api, const OrtShapeInferContext* context, size_t index, Shape* shape) {
    OrtTensorTypeAndShapeInfo* info = nullptr;  // the context's own
    if (failed(api, ShapeInferGetInput::call(api, context, index, &info))) return false;
    if (failed(api, GetTensorElementType::call(api, info, &shape->type))) return false;
    size_t rank = 0;
    if (failed(api, GetDimensionsCount::call(api, info, &rank))) return false;
    shape->sizes.assign(rank, -1);
    shape->names.assign(rank, "");
    if (failed(api, GetDimensions::call(api, info, shape->sizes.data(), rank))) return false;
    if (failed(api, GetSymbolicDimensions::call(api, info, shape->names.data(), rank))) return false;
    // onnxruntime would take a size without a name for the number -1.
    for (size_t axis = 0; axis < rank; ++axis)
        if (shape->sizes[axis] < 0 && !*shape->names[axis]) return false;
    return true;
}

void set_output(Table* api, const OrtShapeInferContext* context, size_t index, Shape* shape) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    if (failed(api, CreateTensorTypeAndShapeInfo::call(api, &info))) return;
    const size_t rank = shape->sizes.size();
    const bool made = !failed(api, SetTensorElementType::call(api, info, shape->type)) &&
                      !failed(api, SetDimensions::call(api, info, shape->sizes.data(), rank)) &&
                      !failed(api, SetSymbolicDimensions::call(api, info, shape->names.data(), rank));
    if (made) failed(api, ShapeInferSetOutput::call(api, context, index, info));
    ReleaseTensorTypeAndShapeInfo::call(api, info);
}

}  // namespace

OrtStatus* infer_output_shape(const CustomOp* custom_op, OrtShapeInferContext* context) {
    const Op& op = *static_cast<const Op*>(custom_op);
    try {
        Shape shape, tau;
        // An input of unknown rank looks like a scalar.
        if (!read_shape(op.api, context, 0, &shape) || shape.sizes.size() < 2) return nullptr;
        // One op answers for all element types of its form, so the type is X's and not the op's own.
        set_output(op.api, context, 0, &shape);
        if (!read_shape(op.api, context, op.form.first_table(), &tau) || tau.sizes.size() != 1) return nullptr;
        shape.sizes[1] = tau.sizes[0];
        shape.names[1] = tau.names[0];
        shape.type = kFloat;
        set_output(op.api, context, 1, &shape);  // refused, without harm, by a node that has one output
    } catch (const std::exception&) {
        // Shapes that are not inferred are found when the model runs.
    }
    return nullptr;
}

}  // namespace ort
