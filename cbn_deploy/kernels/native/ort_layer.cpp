#include "ort_layer.h"

namespace ort {

OrtStatus* read_attribute(const OrtKernelInfo* info, const Layer& layer, const char* name, float* value) {
    float given = 0.0f;
    if (!failed(layer.api, KernelInfoGetAttributeFloat::call(layer.api, info, name, &given))) {
        *value = given;
        return nullptr;
    }
    // Absent, or of another type; absent means the default.
    int64_t integer = 0;
    if (!failed(layer.api, KernelInfoGetAttributeInt::call(layer.api, info, name, &integer)))
        return invalid(layer.api, layer.form, std::string("the attribute ") + name + " must be a float.");
    return nullptr;
}

OrtStatus* invalid(Table* api, const Form& form, const std::string& what) {
    return CreateStatus::call(api, kInvalidArgument, (std::string(form.name) + ": " + what).c_str());
}

OrtStatus* read_attributes(const OrtKernelInfo* info, Layer* layer) {
    CBN_TRY(read_attribute(info, *layer, "epsilon", &layer->epsilon));
    return read_attribute(info, *layer, "density_scale", &layer->density_scale);
}

OrtStatus* tables_from(const Layer& layer, const Tensor (&inputs)[5], std::unique_ptr<const cbn::Tables>* tables) {
    static const char* const kNames[] = {"tau", "mean", "var", "scale", "bias"};
    for (size_t i = 0; i < 5; ++i) {
        const std::vector<int64_t>& shape = inputs[i].shape;
        if (i == 0 ? shape.size() != 1 : shape.size() != 2 || shape != inputs[1].shape || shape[0] != inputs[0].shape[0])
            return invalid(layer.api, layer.form,
                           std::string(kNames[i]) + " must have shape " +
                               (i == 0 ? "(M)." : "(M, D), with tau's M and the D of the other tables."));
    }
    const int64_t components = inputs[1].shape[0], channels = inputs[1].shape[1];
    if (components < 1 || components > cbn::kMaxComponents || channels < 1 || channels > INT32_MAX)
        return invalid(layer.api, layer.form, "there must be 1 to 256 components and at least one channel.");
    const auto data = [&](size_t i) { return static_cast<const float*>(inputs[i].data); };
    *tables = std::make_unique<const cbn::Tables>(
        cbn::make_tables(static_cast<int>(components), static_cast<int>(channels), data(0), data(1), data(2), data(3),
                         data(4), layer.epsilon, layer.density_scale));
    return nullptr;
}

OrtStatus* read_constant_tables(const OrtKernelInfo* info, const Layer& layer,
                                std::unique_ptr<const cbn::Tables>* tables) {
    Tensor inputs[5];
    for (size_t i = 0; i < 5; ++i) {
        int is_constant = 0;
        const OrtValue* value = nullptr;
        CBN_TRY(KernelInfoGetConstantInput::call(layer.api, info, layer.form.first_table() + i, &is_constant, &value));
        if (!is_constant) return nullptr;
        CBN_TRY(read_tensor(layer.api, value, &inputs[i]));
    }
    return tables_from(layer, inputs, tables);
}

OrtStatus* read_input(const Layer& layer, const OrtKernelContext* context, size_t index, Tensor* tensor) {
    const OrtValue* value = nullptr;
    CBN_TRY(KernelContextGetInput::call(layer.api, context, index, &value));
    return read_tensor(layer.api, value, tensor);
}

OrtStatus* make_output(const Layer& layer, OrtKernelContext* context, size_t index, const std::vector<int64_t>& shape,
                       void** data) {
    OrtValue* value = nullptr;
    CBN_TRY(KernelContextGetOutput::call(layer.api, context, index, shape.data(), shape.size(), &value));
    return value ? GetTensorMutableData::call(layer.api, value, data) : nullptr;
}

OrtStatus* make_outputs(const Layer& layer, OrtKernelContext* context, const std::vector<int64_t>& shape,
                        int64_t components, void** y, void** posterior) {
    CBN_TRY(make_output(layer, context, 0, shape, y));
    size_t outputs = 0;
    CBN_TRY(KernelContextGetOutputCount::call(layer.api, context, &outputs));
    if (outputs < 2) return nullptr;
    std::vector<int64_t> posterior_shape = shape;
    posterior_shape[1] = components;
    return make_output(layer, context, 1, posterior_shape, posterior);
}

OrtStatus* read_data(const Layer& layer, const OrtKernelContext* context, int64_t channels, Tensor* x,
                     Tensor* residual) {
    CBN_TRY(read_input(layer, context, 0, x));
    if (x->shape.size() < 2 || x->shape[layer.form.channel_axis(x->shape.size())] != channels)
        return invalid(layer.api, layer.form,
                       std::string("X must have shape ") +
                           (layer.form.layout == Layout::kChannelsLast ? "(B, *spatial, D)" : "(B, D, *spatial)") +
                           " with D = " + std::to_string(channels) + ".");
    if (!layer.form.residual) return nullptr;
    CBN_TRY(read_input(layer, context, 1, residual));
    if (residual->shape != x->shape) return invalid(layer.api, layer.form, "residual must have X's shape.");
    return nullptr;
}

int64_t pixels_of(const Layer& layer, const Tensor& x) {
    int64_t pixels = 1;
    for (size_t axis = 1; axis < x.shape.size(); ++axis)
        if (axis != layer.form.channel_axis(x.shape.size())) pixels *= x.shape[axis];
    return pixels;
}

}  // namespace ort
