#include "ort_op.h"

#include <atomic>
#include <memory>
#include <new>
#include <string>

#include "forward.h"
#include "instruction_set.h"
#include "ort_layer.h"
#include "tables.h"

namespace ort {

namespace {

// Ranges a node is cut into at most: a few a thread, so that a thread that is late delays nobody much.
constexpr int64_t kMaxRanges = 16;

struct Kernel : Layer {
    cbn::DataType type;
    int block = 0;                                              // of a blocked form
    cbn::Quantum x_quantum{}, residual_quantum{}, y_quantum{};  // of an 8-bit form
    const cbn::Kernels* kernels = nullptr;
    std::unique_ptr<const cbn::Tables> constant_tables;  // null: the tables are computed by the graph
};

OrtStatus* read_block(Table* api, const OrtKernelInfo* info, const cbn::Kernels& kernels, const Form& form, int* block) {
    int64_t given = 0;
    if (failed(api, KernelInfoGetAttributeInt::call(api, info, "block", &given)) || !cbn::takes_block(kernels, given))
        return invalid(api, form, "the attribute block must be 8 or 16, a multiple of the instruction set's vectors.");
    *block = static_cast<int>(given);
    return nullptr;
}

OrtStatus* read_quantum(const OrtKernelInfo* info, const Layer& layer, const std::string& tensor,
                        cbn::Quantum* quantum) {
    int64_t zero = -1;
    CBN_TRY(read_attribute(info, layer, (tensor + "_scale").c_str(), &quantum->scale));
    if (failed(layer.api, KernelInfoGetAttributeInt::call(layer.api, info, (tensor + "_zero").c_str(), &zero)) ||
        zero > 255)
        zero = -1;
    quantum->zero = static_cast<int32_t>(zero);
    if (zero < 0 || !cbn::is_valid(*quantum))
        return invalid(layer.api, layer.form,
                       tensor + "_scale must be above zero, " + tensor + "_zero an integer from 0 to 255.");
    return nullptr;
}

OrtStatus* read_quanta(const OrtKernelInfo* info, Kernel* kernel) {
    CBN_TRY(read_quantum(info, *kernel, "x", &kernel->x_quantum));
    if (kernel->form.residual) CBN_TRY(read_quantum(info, *kernel, "residual", &kernel->residual_quantum));
    return read_quantum(info, *kernel, "y", &kernel->y_quantum);
}

// Whether the kernels can work on this many channels in the form's layout.
OrtStatus* check_channels(const Kernel& kernel, const cbn::Tables& tables) {
    if (kernel.form.layout == Layout::kChannelsLast && !cbn::takes_channels_last(*kernel.kernels, tables.channels))
        return invalid(kernel.api, kernel.form, "the channels must be a multiple of the instruction set's vectors.");
    return nullptr;
}

OrtStatus* create_kernel(const CustomOp* custom_op, Table* api, const OrtKernelInfo* info, void** result) {
    const Op& op = *static_cast<const Op*>(custom_op);
    return guarded(api, op.form, [&]() -> OrtStatus* {
        auto kernel = std::make_unique<Kernel>();
        kernel->api = api;
        kernel->form = op.form;
        kernel->type = static_cast<cbn::DataType>(op.type);
        kernel->kernels = cbn::chosen_kernels();
        if (!kernel->kernels)
            return invalid(api, op.form, "CBN_INSTRUCTION_SET names an instruction set that cannot run here.");
        CBN_TRY(read_attributes(info, kernel.get()));
        if (op.form.layout == Layout::kBlocked)
            CBN_TRY(read_block(api, info, *kernel->kernels, op.form, &kernel->block));
        if (op.form.layout == Layout::kChannelsLast) CBN_TRY(read_quanta(info, kernel.get()));
        CBN_TRY(read_constant_tables(info, *kernel, &kernel->constant_tables));
        if (kernel->constant_tables) CBN_TRY(check_channels(*kernel, *kernel->constant_tables));
        *result = kernel.release();
        return nullptr;
    });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

struct Job {
    const cbn::Kernels& kernels;
    cbn::TableView tables;
    cbn::Tensors tensors;
    int64_t ranges;
    std::atomic<bool> failed{false};

    void run(int64_t index) noexcept {
        try {
            const cbn::Range part = cbn::range(tensors, index, ranges);
            cbn::forward(kernels, tables, tensors, part.begin, part.end);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    }
};

OrtStatus* run_job(const Kernel& kernel, const OrtKernelContext* context, Job* job) {
    if (job->ranges == 1) {
        job->run(0);
    } else {
        const auto one = [](void* data, size_t index) { static_cast<Job*>(data)->run(static_cast<int64_t>(index)); };
        CBN_TRY(KernelContextParallelFor::call(kernel.api, context, one, static_cast<size_t>(job->ranges), 0, job));
    }
    if (job->failed) return CreateStatus::call(kernel.api, kFail, "Compound batch normalization: there is not enough memory.");
    return nullptr;
}

// D, or what the runtime fills it up to in whole blocks.
int64_t stored_channels(const Kernel& kernel, const cbn::Tables& tables) {
    if (!kernel.block) return tables.channels;
    return (static_cast<int64_t>(tables.channels) + kernel.block - 1) / kernel.block * kernel.block;
}

OrtStatus* compute_checked(const Kernel& kernel, OrtKernelContext* context) {
    std::unique_ptr<const cbn::Tables> own;
    if (!kernel.constant_tables) {
        Tensor inputs[5];
        for (size_t i = 0; i < 5; ++i)
            CBN_TRY(read_input(kernel, context, kernel.form.first_table() + i, &inputs[i]));
        CBN_TRY(tables_from(kernel, inputs, &own));
        CBN_TRY(check_channels(kernel, *own));
    }
    const cbn::Tables& tables = kernel.constant_tables ? *kernel.constant_tables : *own;
    Tensor x, residual{kUndefined, {}, nullptr};
    CBN_TRY(read_data(kernel, context, stored_channels(kernel, tables), &x, &residual));
    const int64_t pixels = pixels_of(kernel, x);
    void *y = nullptr, *posterior = nullptr;
    CBN_TRY(make_outputs(kernel, context, x.shape, tables.components, &y, &posterior));
    const cbn::Tensors tensors{kernel.type,        x.shape[0],       pixels,
                               x.data,             residual.data,    y,
                               static_cast<float*>(posterior),       kernel.form.relu,
                               kernel.block,       kernel.x_quantum, kernel.residual_quantum,
                               kernel.y_quantum};
    if (x.shape[0] * pixels == 0) return nullptr;
    const cbn::TableView view = tables.view();
    Job job{*kernel.kernels, view, tensors, cbn::worthwhile_ranges(view, tensors, kMaxRanges)};
    return run_job(kernel, context, &job);
}

OrtStatus* compute(void* data, OrtKernelContext* context) {
    const Kernel& kernel = *static_cast<const Kernel*>(data);
    return guarded(kernel.api, kernel.form, [&] { return compute_checked(kernel, context); });
}

const Op& self(const CustomOp* op) { return *static_cast<const Op*>(op); }

}  // namespace

Op make_op(const Form& form, ElementType type, Table* api) {
    Op op{};
    op.version = kApiVersion;
    op.get_name = [](const CustomOp* me) { return self(me).form.name; };
    op.get_execution_provider = [](const CustomOp*) { return "CPUExecutionProvider"; };
    op.get_input_type = [](const CustomOp* me, size_t index) {
        return index < self(me).form.first_table() ? self(me).type : kFloat;
    };
    op.get_input_count = [](const CustomOp* me) { return self(me).form.inputs(); };
    op.get_output_type = [](const CustomOp* me, size_t index) { return index == 0 ? self(me).type : kFloat; };
    op.get_output_count = [](const CustomOp* me) -> size_t { return self(me).form.outputs(); };
    op.destroy_kernel = destroy_kernel;
    op.get_input_characteristic = [](const CustomOp*, size_t) { return kRequired; };
    op.get_output_characteristic = [](const CustomOp*, size_t index) { return index == 0 ? kRequired : kOptional; };
    op.get_input_memory_type = [](const CustomOp*, size_t) { return kDefaultMemory; };
    op.get_variadic_input_min_arity = [](const CustomOp*) { return 0; };
    op.get_variadic_input_homogeneity = [](const CustomOp*) { return 0; };
    op.get_variadic_output_min_arity = [](const CustomOp*) { return 0; };
    op.get_variadic_output_homogeneity = [](const CustomOp*) { return 0; };
    op.create_kernel_v2 = create_kernel;
    op.compute_v2 = compute;
    op.infer_output_shape = infer_output_shape;
    op.get_start_version = [](const CustomOp*) { return 1; };
    op.get_end_version = [](const CustomOp*) { return INT32_MAX; };
    op.form = form;
    op.type = type;
    op.api = api;
    return op;
}

}  // namespace ort
