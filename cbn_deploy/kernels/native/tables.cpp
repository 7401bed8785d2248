// Everything is measured from a shared reference Gaussian, mean m0 and variance v0, which are the tau-weighted averages
// over the components: what all components have in common cancels in the softmax, and the tables stay small where the
// components are alike.

#include "tables.h"

#include <cmath>
#include <cstddef>

namespace cbn {

namespace {

struct Gaussians {
    int components, channels;
    const float *mean, *var;
    std::vector<double> prior;  // tau, scaled to sum 1

    double average(const float* table, int d) const {
        double sum = 0.0;
        for (int j = 0; j < components; ++j) sum += prior[j] * table[index(j, d)];
        return sum;
    }
    size_t index(int j, int d) const { return static_cast<size_t>(j) * channels + d; }
};

Gaussians gaussians(int components, int channels, const float* tau, const float* mean, const float* var) {
    Gaussians result{components, channels, mean, var, std::vector<double>(tau, tau + components)};
    double sum = 0.0;
    for (double value : result.prior) sum += value;
    for (double& value : result.prior) value /= sum;
    return result;
}

// `table` has a row for every channel; see TableView.
AlignedFloats grouped(const std::vector<float>& table, size_t channels, size_t row) {
    const size_t groups = (channels + kGroup - 1) / kGroup;
    AlignedFloats result(groups * kGroup * row);
    for (size_t d = 0; d < channels; ++d)
        for (size_t r = 0; r < row; ++r) result[(d / kGroup * row + r) * kGroup + d % kGroup] = table[d * row + r];
    return result;
}

}  // namespace

Tables make_tables(int components, int channels, const float* tau, const float* mean, const float* var,
                   const float* scale, const float* bias, float epsilon, float density_scale) {
    const Gaussians g = gaussians(components, channels, tau, mean, var);
    const size_t M = components, row = 2 * M + 1;
    Tables tables{components, channels, std::vector<float>(row * channels), std::vector<float>(M),
                  std::vector<float>(row * channels), {}, {}};
    const double half_scale = 0.5 * density_scale;
    std::vector<double> constant(M, 0.0);
    for (int d = 0; d < channels; ++d) {
        // The kernels subtract the rounded centre, so all else refers to the rounded one.
        const float centre = static_cast<float>(g.average(mean, d));
        const double reference = g.average(var, d) + epsilon;
        float* density = &tables.density[row * d];
        float* affine = &tables.affine[row * d];
        density[0] = affine[0] = centre;
        for (int j = 0; j < components; ++j) {
            const size_t at = g.index(j, d);
            const double v = static_cast<double>(var[at]) + epsilon;
            const double shift = static_cast<double>(mean[at]) - centre;
            density[1 + j] = static_cast<float>(half_scale * (v - reference) / (v * reference));
            density[1 + M + j] = static_cast<float>(2.0 * half_scale * shift / v);
            constant[j] -= half_scale * (shift * shift / v + std::log(v / reference));
            const double gain = scale[at] / std::sqrt(v);
            affine[1 + j] = static_cast<float>(gain);
            affine[1 + M + j] = static_cast<float>(bias[at] - gain * shift);
        }
    }
    for (int j = 0; j < components; ++j) {
        // A component that can claim nothing gets a logit below all others.
        const bool dead = g.prior[j] <= 0.0;
        tables.constant[j] = dead ? -3.4028234e38f : static_cast<float>(constant[j] + std::log(g.prior[j]));
    }
    tables.density_groups = grouped(tables.density, channels, row);
    tables.affine_groups = grouped(tables.affine, channels, row);
    return tables;
}

}  // namespace cbn
