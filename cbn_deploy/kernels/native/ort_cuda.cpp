#include "ort_cuda.h"

#include <memory>

#include "cuda_layer.h"
#include "ort_layer.h"

namespace ort {

namespace {

struct CudaKernel : Layer {
    std::unique_ptr<const cuda::Layer> on_gpu;
};

OrtStatus* create_kernel(const CustomOp* custom_op, Table*, const OrtKernelInfo* info, void** result) {
    const Op& op = *static_cast<const Op*>(custom_op);
    return guarded(op.api, op.form, [&]() -> OrtStatus* {
        auto kernel = std::make_unique<CudaKernel>();
        kernel->api = op.api;
        kernel->form = op.form;
        CBN_TRY(read_attributes(info, kernel.get()));
        std::unique_ptr<const cbn::Tables> tables;
        CBN_TRY(read_constant_tables(info, *kernel, &tables));
        if (!tables)
            return invalid(op.api, op.form, "on CUDA tau, mean, var, scale and bias must be initializers; export again.");
        const cuda::KernelKind kind{static_cast<cbn::DataType>(op.type), op.form.residual, op.form.relu,
                                    tables->components};
        kernel->on_gpu = std::make_unique<const cuda::Layer>(kind, *tables);
        *result = kernel.release();
        return nullptr;
    });
}

void destroy_kernel(void* kernel) { delete static_cast<CudaKernel*>(kernel); }

OrtStatus* compute_checked(const CudaKernel& kernel, OrtKernelContext* context) {
    Tensor x, residual{kUndefined, {}, nullptr};
    CBN_TRY(read_data(kernel, context, kernel.on_gpu->channels(), &x, &residual));
    cuda::Tensors tensors{x.shape[0], pixels_of(kernel, x), x.data, residual.data, nullptr, nullptr};
    CBN_TRY(make_outputs(kernel, context, x.shape, kernel.on_gpu->components(), &tensors.y, &tensors.posterior));
    if (tensors.images * tensors.pixels == 0) return nullptr;
    void* stream = nullptr;
    CBN_TRY(KernelContextGetGpuComputeStream::call(kernel.api, context, &stream));
    kernel.on_gpu->launch(tensors, stream);
    return nullptr;
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
    const CudaKernel& kernel = *static_cast<const CudaKernel*>(data);
    return guarded(kernel.api, kernel.form, [&] { return compute_checked(kernel, context); });
}

}  // namespace

Op make_cuda_op(const Form& form, ElementType type, Table* api) {
    Op op = make_op(form, type, api);
    op.get_execution_provider = [](const CustomOp*) { return "CUDAExecutionProvider"; };
    // The tables are read once, by the host.
    op.get_input_memory_type = [](const CustomOp* me, size_t index) {
        return index < static_cast<const Op*>(me)->form.first_table() ? kDefaultMemory : kCpuInput;
    };
    op.create_kernel_v2 = create_kernel;
    op.compute_v2 = compute;
    op.destroy_kernel = destroy_kernel;
    return op;
}

}  // namespace ort
