// The part of onnxruntime's binary interface that libcbn uses, so that no header of onnxruntime is needed to build it.
//
// onnxruntime hands a plugin one table of function pointers. The table only ever grows at its end, so a function is
// known by its slot for ever, and a plugin that asks for an old version of the table runs with every later runtime.
// scripts/check_onnxruntime_versions.py exercises all of this with the oldest and the newest supported runtime.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;

namespace ort {

// The first version whose table has every slot below and whose OrtCustomOp has every member that is set here.
constexpr uint32_t kApiVersion = 17;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kFloat16 = 10, kBfloat16 = 16 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum MemoryType : int { kCpuInput = -2, kDefaultMemory = 0 };  // OrtMemTypeCPUInput: in the host's memory

using Table = void* const;

// A function of the table: Slot<85, Status*(...)>::of(table)(arguments).
template <int Number, typename Signature>
struct Slot;
template <int Number, typename Result, typename... Arguments>
struct Slot<Number, Result(Arguments...)> {
    static Result call(Table* table, Arguments... arguments) {
        return reinterpret_cast<Result (*)(Arguments...)>(table[Number])(arguments...);
    }
};

using CreateStatus = Slot<0, OrtStatus*(ErrorCode, const char*)>;
using CreateCustomOpDomain = Slot<26, OrtStatus*(const char*, OrtCustomOpDomain**)>;
using CustomOpDomainAdd = Slot<27, OrtStatus*(OrtCustomOpDomain*, const struct CustomOp*)>;
using AddCustomOpDomain = Slot<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Slot<51, OrtStatus*(OrtValue*, void**)>;
using GetTensorElementType = Slot<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, ElementType*)>;
using GetDimensionsCount = Slot<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, size_t*)>;
using GetDimensions = Slot<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t)>;
using GetSymbolicDimensions = Slot<63, OrtStatus*(const OrtTensorTypeAndShapeInfo*, const char**, size_t)>;
using GetTensorTypeAndShape = Slot<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using KernelInfoGetAttributeFloat = Slot<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>;
using KernelInfoGetAttributeInt = Slot<86, OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>;
using KernelContextGetOutputCount = Slot<89, OrtStatus*(const OrtKernelContext*, size_t*)>;
using KernelContextGetInput = Slot<90, OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)>;
using KernelContextGetOutput = Slot<91, OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>;
using ReleaseStatus = Slot<93, void(OrtStatus*)>;
using ReleaseTensorTypeAndShapeInfo = Slot<99, void(OrtTensorTypeAndShapeInfo*)>;
using KernelContextGetGpuComputeStream = Slot<193, OrtStatus*(const OrtKernelContext*, void**)>;
using KernelInfoGetConstantInput = Slot<249, OrtStatus*(const OrtKernelInfo*, size_t, int*, const OrtValue**)>;
using ShapeInferGetInput = Slot<268, OrtStatus*(const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**)>;
using ShapeInferSetOutput =
    Slot<270, OrtStatus*(const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*)>;
using KernelContextParallelFor =
    Slot<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>;

struct ApiBase {
    Table* (*get_api)(uint32_t version);  // null: this runtime is older than the version asked for
    const char* (*get_version)();
};

// What a custom op tells the runtime about itself; the members' order is the interface.
struct CustomOp {
    uint32_t version;
    void* (*create_kernel)(const CustomOp*, Table*, const OrtKernelInfo*);
    const char* (*get_name)(const CustomOp*);
    const char* (*get_execution_provider)(const CustomOp*);
    ElementType (*get_input_type)(const CustomOp*, size_t);
    size_t (*get_input_count)(const CustomOp*);
    ElementType (*get_output_type)(const CustomOp*, size_t);
    size_t (*get_output_count)(const CustomOp*);
    void (*compute)(void*, OrtKernelContext*);
    void (*destroy_kernel)(void*);
    Characteristic (*get_input_characteristic)(const CustomOp*, size_t);
    Characteristic (*get_output_characteristic)(const CustomOp*, size_t);
    MemoryType (*get_input_memory_type)(const CustomOp*, size_t);
    int (*get_variadic_input_min_arity)(const CustomOp*);
    int (*get_variadic_input_homogeneity)(const CustomOp*);
    int (*get_variadic_output_min_arity)(const CustomOp*);
    int (*get_variadic_output_homogeneity)(const CustomOp*);
    OrtStatus* (*create_kernel_v2)(const CustomOp*, Table*, const OrtKernelInfo*, void**);
    OrtStatus* (*compute_v2)(void*, OrtKernelContext*);
    OrtStatus* (*infer_output_shape)(const CustomOp*, OrtShapeInferContext*);
    int (*get_start_version)(const CustomOp*);
    int (*get_end_version)(const CustomOp*);
    void* later_versions[4];
};

}  // namespace ort
