#include "ort_op.h"

#include <atomic>
#include <memory>
#include <new>
#include <string>

#include "forward.h"
#include "instruction_set.h"
#include "ort_tensors.h"
#include "tables.h"

namespace ort {

namespace {

// Ranges a node is cut into at most: a few a thread, so that a thread that is late delays nobody much.
constexpr int64_t kMaxRanges = 16;

struct Kernel {
    Table* api;
    Form form;
    cbn::DataType type;
    float epsilon = 1e-5f;
    float density_scale = 1.0f;
    int block = 0;                                      // of a blocked form
    cbn::Quantum x_quantum{}, residual_quantum{}, y_quantum{};  // of an 8-bit form
    const cbn::Kernels* kernels = nullptr;
    std::unique_ptr<const cbn::Tables> constant_tables;  // null: the tables are computed by the graph
};

OrtStatus* invalid(Table* api, const Form& form, const std::string& what) {
    return CreateStatus::call(api, kInvalidArgument, (std::string(form.name) + ": " + what).c_str());
}

// Runs `function`, which returns a status and may throw.
template <typename Function>
OrtStatus* guarded(Table* api, const Form& form, Function function) {
    try {
        return function();
    } catch (const std::bad_alloc&) {
        return CreateStatus::call(api, kFail, "Compound batch normalization: there is not enough memory.");
    } catch (const std::exception& error) {
        return invalid(api, form, error.what());
    }
}

OrtStatus* read_attribute(Table* api, const OrtKernelInfo* info, const Form& form, const char* name, float* value) {
    float given = 0.0f;
    if (!failed(api, KernelInfoGetAttributeFloat::call(api, info, name, &given))) {
        *value = given;
        return nullptr;
    }
    // Absent, or of another type; absent means the default.
    int64_t integer = 0;
    if (!failed(api, KernelInfoGetAttributeInt::call(api, info, name, &integer)))
        return invalid(api, form, std::string("the attribute ") + name + " must be a float.");
    return nullptr;
}

OrtStatus* read_block(Table* api, const OrtKernelInfo* info, const cbn::Kernels& kernels, const Form& form, int* block) {
    int64_t given = 0;
    if (failed(api, KernelInfoGetAttributeInt::call(api, info, "block", &given)) || !cbn::takes_block(kernels, given))
        return invalid(api, form, "the attribute block must be 8 or 16, a multiple of the instruction set's vectors.");
    *block = static_cast<int>(given);
    return nullptr;
}

OrtStatus* read_quantum(Table* api, const OrtKernelInfo* info, const Form& form, const std::string& tensor,
                        cbn::Quantum* quantum) {
    int64_t zero = -1;
    CBN_TRY(read_attribute(api, info, form, (tensor + "_scale").c_str(), &quantum->scale));
    if (failed(api, KernelInfoGetAttributeInt::call(api, info, (tensor + "_zero").c_str(), &zero)) || zero > 255)
        zero = -1;
    quantum->zero = static_cast<int32_t>(zero);
    if (!cbn::is_valid(*quantum))
        return invalid(api, form, tensor + "_scale must be above zero, " + tensor + "_zero an integer from 0 to 255.");
    return nullptr;
}

OrtStatus* read_quanta(const OrtKernelInfo* info, Kernel* kernel) {
    CBN_TRY(read_quantum(kernel->api, info, kernel->form, "x", &kernel->x_quantum));
    if (kernel->form.residual)
        CBN_TRY(read_quantum(kernel->api, info, kernel->form, "residual", &kernel->residual_quantum));
    return read_quantum(kernel->api, info, kernel->form, "y", &kernel->y_quantum);
}

OrtStatus* tables_from(const Kernel& kernel, const Tensor (&inputs)[5], std::unique_ptr<const cbn::Tables>* tables) {
    static const char* const kNames[] = {"tau", "mean", "var", "scale", "bias"};
    for (size_t i = 0; i < 5; ++i) {
        const std::vector<int64_t>& shape = inputs[i].shape;
        if (i == 0 ? shape.size() != 1 : shape.size() != 2 || shape != inputs[1].shape || shape[0] != inputs[0].shape[0])
            return invalid(kernel.api, kernel.form,
                           std::string(kNames[i]) + " must have shape " +
                               (i == 0 ? "(M)." : "(M, D), with tau's M and the D of the other tables."));
    }
    const int64_t components = inputs[1].shape[0], channels = inputs[1].shape[1];
    if (components < 1 || components > cbn::kMaxComponents || channels < 1 || channels > INT32_MAX)
        return invalid(kernel.api, kernel.form, "there must be 1 to 256 components and at least one channel.");
    if (kernel.form.layout == Layout::kChannelsLast && !cbn::takes_channels_last(*kernel.kernels, channels))
        return invalid(kernel.api, kernel.form, "the channels must be a multiple of the instruction set's vectors.");
    const auto data = [&](size_t i) { return static_cast<const float*>(inputs[i].data); };
    *tables = std::make_unique<const cbn::Tables>(
        cbn::make_tables(static_cast<int>(components), static_cast<int>(channels), data(0), data(1), data(2), data(3),
                         data(4), kernel.epsilon, kernel.density_scale));
    return nullptr;
}

OrtStatus* read_constant_tables(const OrtKernelInfo* info, Kernel* kernel) {
    Tensor inputs[5];
    for (size_t i = 0; i < 5; ++i) {
        int is_constant = 0;
        const OrtValue* value = nullptr;
        CBN_TRY(KernelInfoGetConstantInput::call(kernel->api, info, kernel->form.first_table() + i, &is_constant, &value));
        if (!is_constant) return nullptr;
        CBN_TRY(read_tensor(kernel->api, value, &inputs[i]));
    }
    return tables_from(*kernel, inputs, &kernel->constant_tables);
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
        CBN_TRY(read_attribute(api, info, op.form, "epsilon", &kernel->epsilon));
        CBN_TRY(read_attribute(api, info, op.form, "density_scale", &kernel->density_scale));
        if (op.form.layout == Layout::kBlocked)
            CBN_TRY(read_block(api, info, *kernel->kernels, op.form, &kernel->block));
        if (op.form.layout == Layout::kChannelsLast) CBN_TRY(read_quanta(info, kernel.get()));
        CBN_TRY(read_constant_tables(info, kernel.get()));
        *result = kernel.release();
        return nullptr;
    });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

OrtStatus* read_input(const Kernel& kernel, const OrtKernelContext* context, size_t index, Tensor* tensor) {
    const OrtValue* value = nullptr;
    CBN_TRY(KernelContextGetInput::call(kernel.api, context, index, &value));
    return read_tensor(kernel.api, value, tensor);
}

OrtStatus* make_output(const Kernel& kernel, OrtKernelContext* context, size_t index, const std::vector<int64_t>& shape,
                       void** data) {
    OrtValue* value = nullptr;
    CBN_TRY(KernelContextGetOutput::call(kernel.api, context, index, shape.data(), shape.size(), &value));
    return value ? GetTensorMutableData::call(kernel.api, value, data) : nullptr;
}

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

OrtStatus* make_outputs(const Kernel& kernel, OrtKernelContext* context, const std::vector<int64_t>& shape,
                        int64_t components, cbn::Tensors* tensors) {
    CBN_TRY(make_output(kernel, context, 0, shape, &tensors->y));
    size_t outputs = 0;
    CBN_TRY(KernelContextGetOutputCount::call(kernel.api, context, &outputs));
    if (outputs < 2) return nullptr;
    std::vector<int64_t> posterior_shape = shape;
    posterior_shape[1] = components;
    void* posterior = nullptr;
    CBN_TRY(make_output(kernel, context, 1, posterior_shape, &posterior));
    tensors->posterior = static_cast<float*>(posterior);
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
    }
    const cbn::Tables& tables = kernel.constant_tables ? *kernel.constant_tables : *own;
    Tensor x, residual{kernel.form.residual ? kUndefined : kFloat, {}, nullptr};
    CBN_TRY(read_input(kernel, context, 0, &x));
    const int64_t channels = stored_channels(kernel, tables);
    const bool channels_last = kernel.form.layout == Layout::kChannelsLast;
    if (x.shape.size() < 2 || (channels_last ? x.shape.back() : x.shape[1]) != channels)
        return invalid(kernel.api, kernel.form,
                       std::string("X must have shape ") + (channels_last ? "(B, *spatial, D)" : "(B, D, *spatial)") +
                           " with D = " + std::to_string(channels) + ".");
    if (kernel.form.residual) CBN_TRY(read_input(kernel, context, 1, &residual));
    if (kernel.form.residual && residual.shape != x.shape)
        return invalid(kernel.api, kernel.form, "residual must have X's shape.");
    int64_t pixels = 1;
    const size_t first_axis = channels_last ? 1 : 2;  // of the spatial ones
    for (size_t axis = first_axis; axis < first_axis + x.shape.size() - 2; ++axis) pixels *= x.shape[axis];
    cbn::Tensors tensors{kernel.type,
                         x.shape[0],
                         pixels,
                         x.data,
                         residual.data,
                         nullptr,
                         nullptr,
                         kernel.form.relu,
                         kernel.block,
                         kernel.x_quantum,
                         kernel.residual_quantum,
                         kernel.y_quantum};
    CBN_TRY(make_outputs(kernel, context, x.shape, tables.components, &tensors));
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
