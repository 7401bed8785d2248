// libcbn against its own equations in double precision, for processors that have no Python here (emulated ones).
// scripts/check_compilers.py builds and runs it. Exit code 0: every value within a millionth of the largest,
// 8-bit ones within half a step.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "c_api.h"

namespace {

unsigned state = 1;
double uniform() { return (state = state * 1664525u + 1013904223u) / 4294967296.0; }

std::vector<float> uniforms(int count, double low, double high) {
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(low + (high - low) * uniform());
    return values;
}

// Largest error of Y and of the posterior for one shape; y = max(0, cbn(x) + residual).
double worst(int images, int M, int D, int P, int block) {
    const double epsilon = 1e-5, scale_of_density = 1.0 / std::sqrt(D);
    const int stored = block ? (D + block - 1) / block * block : D;
    std::vector<float> tau = uniforms(M, 0.1, 1.0), mean = uniforms(M * D, -1, 1), var = uniforms(M * D, 0.5, 2),
                       gain = uniforms(M * D, -2, 2), bias = uniforms(M * D, -1, 1);
    std::vector<float> x(images * stored * P), residual(x.size()), y(x.size()), posterior(images * M * P);
    const auto at = [&](int b, int d, int p) {
        return block ? ((b * (stored / block) + d / block) * P + p) * block + d % block : (b * D + d) * P + p;
    };
    for (int b = 0; b < images; ++b)
        for (int d = 0; d < D; ++d)
            for (int p = 0; p < P; ++p) {
                x[at(b, d, p)] = static_cast<float>(4 * uniform() - 2);
                residual[at(b, d, p)] = static_cast<float>(uniform() - 0.5);
            }
    cbn_layer* layer = nullptr;
    const char* error = cbn_layer_create(M, D, tau.data(), mean.data(), var.data(), gain.data(), bias.data(),
                                         static_cast<float>(epsilon), static_cast<float>(scale_of_density), nullptr, &layer);
    if (error) return std::puts(error), INFINITY;
    cbn_tensors tensors{1, 1, images, P, x.data(), residual.data(), y.data(), posterior.data(), block, {}, {}, {}};
    error = cbn_layer_forward(layer, &tensors, 0, static_cast<int64_t>(images) * P);
    cbn_layer_destroy(layer);
    if (error) return std::puts(error), INFINITY;
    double result = 0;
    std::vector<double> w(M);
    for (int b = 0; b < images; ++b)
        for (int p = 0; p < P; ++p) {
            for (int j = 0; j < M; ++j) {
                w[j] = std::log(static_cast<double>(tau[j]));
                for (int d = 0; d < D; ++d) {
                    const double v = var[j * D + d] + epsilon, c = x[at(b, d, p)] - mean[j * D + d];
                    w[j] -= 0.5 * scale_of_density * (c * c / v + std::log(v));
                }
            }
            const double highest = *std::max_element(w.begin(), w.end());
            double sum = 0;
            for (double& value : w) sum += value = std::exp(value - highest);
            for (int j = 0; j < M; ++j)
                result = std::max(result, std::abs(w[j] / sum - posterior[(b * M + j) * P + p]));
            for (int d = 0; d < D; ++d) {
                double expected = residual[at(b, d, p)];
                for (int j = 0; j < M; ++j) {
                    const double c = x[at(b, d, p)] - mean[j * D + d];
                    expected += w[j] / sum * (gain[j * D + d] * c / std::sqrt(var[j * D + d] + epsilon) + bias[j * D + d]);
                }
                result = std::max(result, std::abs(std::max(0.0, expected) - y[at(b, d, p)]) / 10);
            }
        }
    return result;
}

// Furthest that a number of the 8-bit form lies from the float32 form's, in steps; rounding alone makes a half.
double worst_step(int M, int D, int P) {
    std::vector<float> tau = uniforms(M, 0.1, 1.0), mean = uniforms(M * D, -1, 1), var = uniforms(M * D, 0.5, 2),
                       gain = uniforms(M * D, -2, 2), bias = uniforms(M * D, -1, 1);
    const cbn_quantum x_quantum{0.02f, 100}, residual_quantum{0.01f, 3}, y_quantum{0.015f, 9};
    std::vector<uint8_t> x8(D * P), residual8(D * P), y8(D * P);
    std::vector<float> x(D * P), residual(D * P), y(D * P);
    for (int p = 0; p < P; ++p)
        for (int d = 0; d < D; ++d) {
            const uint8_t n = x8[p * D + d] = static_cast<uint8_t>(256 * uniform());
            const uint8_t r = residual8[p * D + d] = static_cast<uint8_t>(256 * uniform());
            x[d * P + p] = x_quantum.scale * static_cast<float>(n - x_quantum.zero);
            residual[d * P + p] = residual_quantum.scale * static_cast<float>(r - residual_quantum.zero);
        }
    cbn_layer* layer = nullptr;
    const char* error = cbn_layer_create(M, D, tau.data(), mean.data(), var.data(), gain.data(), bias.data(), 1e-5f, 0.1f,
                                         nullptr, &layer);
    if (error) return std::puts(error), INFINITY;
    const cbn_tensors floats{1, 1, 1, P, x.data(), residual.data(), y.data(), nullptr, 0, {}, {}, {}};
    const cbn_tensors bytes{2, 1, 1, P, x8.data(), residual8.data(), y8.data(), nullptr, 0, x_quantum, residual_quantum, y_quantum};
    error = cbn_layer_forward(layer, &floats, 0, P);
    if (!error) error = cbn_layer_forward(layer, &bytes, 0, P);
    cbn_layer_destroy(layer);
    if (error) return std::puts(error), INFINITY;
    double result = 0;
    for (int p = 0; p < P; ++p)
        for (int d = 0; d < D; ++d) {
            const double step = y[d * P + p] / y_quantum.scale + y_quantum.zero;
            result = std::max(result, std::abs(std::min(step, 255.0) - y8[p * D + d]));
        }
    return result;
}

}  // namespace

int main() {
    double steps = 0;
    for (int M : {1, 4, 11})
        for (int D : {16, 48, 256})
            for (int P : {1, 49, 300}) steps = std::max(steps, worst_step(M, D, P));
    double result = 0;
    for (int M : {1, 2, 3, 4, 7, 8, 11})
        for (int D : {1, 9, 16, 64, 130})
            for (int P : {1, 5, 16, 49, 130})
                for (int block : {0, 8, 16}) result = std::max(result, worst(2, M, D, P, block));
    std::printf("%s: largest error %.2g of the largest value, %.4f steps of 8 bits\n", cbn_instruction_set(), result, steps);
    return result < 1e-6 && steps < 0.501 ? 0 : 1;
}
