// One form of the op for one element type, as onnxruntime sees it.
#pragma once

#include "ort_abi.h"

namespace ort {

struct Form {
    const char* name;
    bool residual;
    bool relu;
    bool blocked;  // tensors in onnxruntime's blocked layout; the attribute "block" says how many channels a block has

    size_t first_table() const { return residual ? 2 : 1; }
    size_t inputs() const { return first_table() + 5; }
};

// Begins with what onnxruntime reads, so that a pointer to one is a pointer to the other.
struct Op : CustomOp {
    Form form;
    ElementType type;
    Table* api;
};

// An op ready to be added to a domain.
Op make_op(const Form& form, ElementType type, Table* api);

// Y is shaped and typed like X; what cannot be known yet is left open.
OrtStatus* infer_output_shape(const CustomOp* op, OrtShapeInferContext* context);

}  // namespace ort
