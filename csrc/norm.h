// Batch normalisation of channels that lie in rows, as those of activations with the batch
// innermost do. A row stays in the second level of the cache while it is read again.
#pragma once

#include <cmath>

#include "vector.h"

namespace {

constexpr int64_t summed_block = 1024;  // added in float; blocks are added in double

// Calls `add(begin, end)` with the bounds of each block of a row.
template <class Add>
inline void for_blocks(int64_t length, Add add) {
  for (int64_t begin = 0; begin < length; begin += summed_block)
    add(begin, minimum(begin + summed_block, length));
}

inline double sum_of(Vec v) {
  double sum = 0;
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
}

// Sum of term(vector of numbers) over a row.
template <class Term>
inline double sum_row(const float* x, int64_t length, Term term) {
  double sum = 0;
  for_blocks(length, [&](int64_t begin, int64_t end) {
    Vec sums[4] = {};
    int64_t i = begin;
    for (; i + 4 * LANES <= end; i += 4 * LANES)
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) sums[k] += term(load(x + i + k * LANES));
    for (; i + LANES <= end; i += LANES) sums[0] += term(load(x + i));
    sum += sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < end; i++) sum += term(broadcast(x[i]))[0];
  });
  return sum;
}

// y[i] = map(x[i], dy[i]), by vectors; `dy` may be `x`.
template <class Map>
inline void map_row(const float* x, const float* dy, float* y, int64_t length, bool past, Map map) {
  int64_t i = 0;
  if (past) {
    // Up to where whole vectors can be stored past the caches.
    for (; i < length && reinterpret_cast<uintptr_t>(y + i) % sizeof(Vec); i++)
      y[i] = map(broadcast(x[i]), broadcast(dy[i]))[0];
    for (; i + LANES <= length; i += LANES)
      store_past_caches(y + i, map(load(x + i), load(dy + i)));
  }
  for (; i + LANES <= length; i += LANES) store(y + i, map(load(x + i), load(dy + i)));
  for (; i < length; i++) y[i] = map(broadcast(x[i]), broadcast(dy[i]))[0];
}

void normalize(int64_t channels, int64_t length, const float* x, const float* weight,
               const float* bias, float eps, float* y, float* mean, float* variance, int threads) {
  const bool past = channels * length * 4 > cached_bytes;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t c = 0; c < channels; c++) {
    const float* row = x + c * length;
    const double center = sum_row(row, length, [](Vec v) { return v; }) / length;
    mean[c] = static_cast<float>(center);
    const Vec middle = broadcast(mean[c]);
    const double spread =
        sum_row(row, length, [&](Vec v) { return (v - middle) * (v - middle); }) / length;
    variance[c] = static_cast<float>(spread);
    const double factor = (weight ? weight[c] : 1.0) / std::sqrt(spread + eps);
    const Vec scale = broadcast(static_cast<float>(factor));
    const Vec shift = broadcast(bias ? bias[c] : 0.0f);
    map_row(row, row, y + c * length, length, past,
            [&](Vec v, Vec) { return (v - middle) * scale + shift; });
  }
}

void normalize_gradient(int64_t channels, int64_t length, const float* x, const float* dy,
                        const float* weight, const float* mean, const float* variance, float eps,
                        float* dx, float* dweight, float* dbias, int threads) {
  const bool past = channels * length * 4 > cached_bytes;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t c = 0; c < channels; c++) {
    const float *row = x + c * length, *gradient = dy + c * length;
    const Vec middle = broadcast(mean[c]);
    double sum = 0, product = 0;
    for_blocks(length, [&](int64_t begin, int64_t end) {
      Vec sums[2] = {}, products[2] = {};
      int64_t i = begin;
      for (; i + 2 * LANES <= end; i += 2 * LANES)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
          const Vec g = load(gradient + i + k * LANES);
          sums[k] += g;
          products[k] += g * (load(row + i + k * LANES) - middle);
        }
      for (; i + LANES <= end; i += LANES) {
        const Vec g = load(gradient + i);
        sums[0] += g;
        products[0] += g * (load(row + i) - middle);
      }
      sum += sum_of(sums[0] + sums[1]);
      product += sum_of(products[0] + products[1]);
      for (; i < end; i++) {
        sum += gradient[i];
        product += gradient[i] * (row[i] - mean[c]);
      }
    });
    const double inverse = 1 / std::sqrt(static_cast<double>(variance[c]) + eps);
    dbias[c] = static_cast<float>(sum);
    dweight[c] = static_cast<float>(product * inverse);
    const Vec factor = broadcast(static_cast<float>((weight ? weight[c] : 1.0) * inverse));
    const Vec even = broadcast(static_cast<float>(sum / length));
    const Vec slope = broadcast(static_cast<float>(product * inverse * inverse / length));
    map_row(row, gradient, dx + c * length, length, past,
            [&](Vec v, Vec g) { return (g - even - (v - middle) * slope) * factor; });
  }
}

}  // namespace
