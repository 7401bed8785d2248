// onnxruntime's values as shapes and pointers.
#pragma once

#include <cstdint>
#include <vector>

#include "ort_abi.h"

namespace ort {

// Returns at the first failure. Every call of the table answers null on success.
#define CBN_TRY(call)                                   \
    do {                                                \
        if (OrtStatus* cbn_status = (call)) return cbn_status; \
    } while (false)

struct Tensor {
    ElementType type;
    std::vector<int64_t> shape;
    const void* data;
};

// Type, shape and data of a value. May throw std::bad_alloc.
inline OrtStatus* read_tensor(Table* api, const OrtValue* value, Tensor* tensor) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    CBN_TRY(GetTensorTypeAndShape::call(api, value, &info));
    struct Release {
        Table* api;
        OrtTensorTypeAndShapeInfo* info;
        ~Release() { ReleaseTensorTypeAndShapeInfo::call(api, info); }
    } release{api, info};
    size_t rank = 0;
    CBN_TRY(GetTensorElementType::call(api, info, &tensor->type));
    CBN_TRY(GetDimensionsCount::call(api, info, &rank));
    tensor->shape.resize(rank);
    CBN_TRY(GetDimensions::call(api, info, tensor->shape.data(), rank));
    void* data = nullptr;
    // The interface has one function for reading and for writing.
    CBN_TRY(GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data));
    tensor->data = data;
    return nullptr;
}

// Drops a status that is not an error to the caller; whether it was one.
inline bool failed(Table* api, OrtStatus* status) {
    if (status) ReleaseStatus::call(api, status);
    return status != nullptr;
}

}  // namespace ort
