// The op on NVIDIA GPUs, beside the CPU's.
#pragma once

#include "ort_op.h"

namespace ort {

// A planar form for onnxruntime's CUDA provider. Registering it needs no GPU; making a kernel of it does.
Op make_cuda_op(const Form& form, ElementType type, Table* api);

}  // namespace ort
