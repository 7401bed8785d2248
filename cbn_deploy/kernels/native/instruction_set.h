// Which of the compiled kernels run on this processor.
#pragma once

#include "kernel.h"

namespace cbn {

// The kernels called `name` ("baseline", "avx2" or "avx512"); null where this build or this processor has them not.
const Kernels* kernels_by_name(const char* name);

// The fastest kernels of this processor.
const Kernels* best_kernels();

// What the environment variable CBN_INSTRUCTION_SET names, or the fastest if it is not set. Null: it names something
// that cannot run here.
const Kernels* chosen_kernels();

}  // namespace cbn
