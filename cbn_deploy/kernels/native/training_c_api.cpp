#include <algorithm>
#include <atomic>
#include <new>

#include "c_api.h"
#include "instruction_set.h"
#include "training.h"

namespace {

const char* const kNoInstructionSet =
    "The instruction set asked for (CBN_INSTRUCTION_SET) does not exist or cannot run here.";

// What the threads of one call share: each takes the next chunk until none is left.
template <typename Chunk>
struct Job {
    const Chunk& run;
    int64_t chunks;
    std::atomic<int64_t> next{0};
    std::atomic<bool> no_memory{false};

    static void work(void* data) {
        Job& job = *static_cast<Job*>(data);
        try {
            for (int64_t chunk = job.next++; chunk < job.chunks; chunk = job.next++) job.run(chunk);
        } catch (const std::bad_alloc&) {
            job.no_memory = true;
        }
    }
};

template <typename Chunk>
const char* run_chunks(int64_t chunks, cbn_parallel parallel, int32_t threads, const Chunk& run) {
    Job<Chunk> job{run, chunks};
    const int64_t useful = std::min<int64_t>(threads, chunks);
    if (parallel && useful > 1) parallel(Job<Chunk>::work, &job, static_cast<unsigned>(useful), 0);
    else Job<Chunk>::work(&job);
    return job.no_memory ? "There is not enough memory for the layer." : nullptr;
}

const cbn::Kernels* find_kernels(const char* instruction_set) {
    return instruction_set ? cbn::kernels_by_name(instruction_set) : cbn::chosen_kernels();
}

const char* missing(const cbn_training& a) {
    const auto step = static_cast<cbn::TrainingStep>(a.step);
    if (!a.table || !a.x || !a.posterior) return "The table, x or the posterior is missing.";
    const bool sums = step == cbn::TrainingStep::kExpectation || step == cbn::TrainingStep::kOutputSums;
    if (sums ? !a.sums : !a.result) return "The place for the result is missing.";
    if ((step == cbn::TrainingStep::kOutputSums || step == cbn::TrainingStep::kInputGradient) && !a.grad)
        return "The gradient is missing.";
    if ((step == cbn::TrainingStep::kExpectation || step == cbn::TrainingStep::kInputGradient) && !a.constant)
        return "The constants are missing.";
    return nullptr;
}

const char* wrong(const cbn_training& a) {
    if (a.step < 0 || a.step > 3) return "The step must be 0 to 3.";
    if (a.components < 1 || a.components > cbn::kMaxTrainingComponents) return "Training needs 1 to 8 components.";
    if (a.channels < 1 || a.channels > INT32_MAX) return "A layer must have at least one channel.";
    if (a.images < 0 || a.pixels < 0) return "The numbers of images and pixels must not be negative.";
    return a.images * a.pixels == 0 ? nullptr : missing(a);
}

const char* wrong(const cbn_planes& a) {
    if (a.step < 0 || a.step > 2) return "The step must be 0 to 2.";
    if (a.planes < 0 || a.pixels < 1) return "Planes must have at least one pixel, and their number not be negative.";
    if (a.planes == 0) return nullptr;
    const auto step = static_cast<cbn::PlaneStep>(a.step);
    if (!a.x || (step != cbn::PlaneStep::kMoments && !a.table)) return "The table or x is missing.";
    if (step == cbn::PlaneStep::kAffine ? !a.result : !a.sums) return "The place for the result is missing.";
    if (step == cbn::PlaneStep::kGradientSums && !a.grad) return "The gradient is missing.";
    return nullptr;
}

}  // namespace

int64_t cbn_training_chunks(int64_t images, int64_t pixels) { return cbn::training_chunks(images, pixels); }

const char* cbn_training_run(const cbn_training* arguments, const char* instruction_set, cbn_parallel parallel,
                             int32_t threads) {
    if (!arguments) return "The arguments are missing.";
    const cbn_training& a = *arguments;
    if (const char* message = wrong(a)) return message;
    const cbn::Kernels* found = find_kernels(instruction_set);
    if (!found) return kNoInstructionSet;
    const cbn::TrainingKernels& kernels = cbn::training_kernels(*found);
    const auto step = static_cast<cbn::TrainingStep>(a.step);
    const cbn::TrainingTensors tensors{a.components, static_cast<int>(a.channels), a.images, a.pixels, a.table, a.constant,
                                       a.x, a.grad, a.posterior, a.result, a.sums};
    return run_chunks(cbn::training_chunks(a.images, a.pixels), parallel, threads,
                      [&](int64_t chunk) { cbn::run_chunk(kernels, step, tensors, chunk); });
}

const char* cbn_planes_run(const cbn_planes* arguments, const char* instruction_set, cbn_parallel parallel,
                           int32_t threads) {
    if (!arguments) return "The arguments are missing.";
    const cbn_planes& a = *arguments;
    if (const char* message = wrong(a)) return message;
    const cbn::Kernels* found = find_kernels(instruction_set);
    if (!found) return kNoInstructionSet;
    const cbn::PlaneKernels& kernels = cbn::plane_kernels(*found);
    const auto step = static_cast<cbn::PlaneStep>(a.step);
    const cbn::Planes planes{static_cast<ptrdiff_t>(a.planes), static_cast<ptrdiff_t>(a.pixels), a.table, a.x, a.grad,
                             a.result, a.sums};
    return run_chunks(cbn::plane_chunks(planes), parallel, threads,
                      [&](int64_t chunk) { cbn::run_plane_chunk(kernels, step, planes, chunk); });
}
