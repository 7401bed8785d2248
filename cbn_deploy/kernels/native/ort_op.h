// One form of the op for one element type, as onnxruntime sees it.
#pragma once

#include "ort_abi.h"

namespace ort {

enum class Layout {
    kPlanar,
    kBlocked,       // onnxruntime's; the attribute "block" says how many channels a block has
    kChannelsLast,  // 8-bit; the attributes "x_scale", "x_zero" and so on say what the numbers stand for
};

struct Form {
    const char* name;
    bool residual;
    bool relu;
    Layout layout;

    size_t first_table() const { return residual ? 2 : 1; }
    size_t inputs() const { return first_table() + 5; }
    size_t channel_axis(size_t rank) const { return layout == Layout::kChannelsLast ? rank - 1 : 1; }
    size_t outputs() const { return layout == Layout::kChannelsLast ? 1 : 2; }
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
