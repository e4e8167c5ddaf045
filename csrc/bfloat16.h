// The inner loops for bfloat16, with the instructions of AVX-512: each multiplies 32 numbers by 32
// others and adds the products of neighbours to one of 16 sums.
//
// A vector of the input holds 32 images. Its neighbours must be what two entries of a row read, so
// the vectors of both are interleaved. That puts images 0-3, 8-11, 16-19 and 24-27 into a first
// vector of sums, the others into a second; `Loops::sum` puts them back in order.
#pragma once

#include "inner.h"

namespace {

inline Halves broadcast_two(const Bfloat16* p) {
  int32_t both;
  std::memcpy(&both, p, 4);
  return _mm512_set1_epi32(both);
}

// As `accumulate`, for G outputs and entries in twos.
template <int G, int H, int W>
void half_rows(const Stream<Bfloat16>& s, const int32_t* starts, int64_t begin, int64_t end,
               const Bfloat16* patch, int64_t stride, float* sums, bool first) {
  constexpr int P = 2 * H * W;
  for (int64_t r = begin; r < end; r++, sums += G * P * LANES) {
    Vec acc[G][P];
    fetch<G, P>(acc, sums, first);
    for (int32_t e = starts[r]; e < starts[r + 1]; e += 2) {
      const Bfloat16 *x = patch + s.distance[e], *y = patch + s.distance[e + 1];
      Halves w[G];
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) w[g] = broadcast_two(s.values + int64_t{e} * G + 2 * g);
#pragma GCC unroll 16
      for (int i = 0; i < H; i++)
#pragma GCC unroll 16
        for (int j = 0; j < W; j++) {
          const int k = 2 * (i * W + j);
          Halves a = load(x + i * stride + j * 2 * LANES);
          Halves b = load(y + i * stride + j * 2 * LANES);
          PIN(a);
          PIN(b);
          Halves low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
          PIN(low);
          PIN(high);
#pragma GCC unroll 4
          for (int g = 0; g < G; g++) {
            acc[g][k] = add_product(acc[g][k], w[g], low);
            acc[g][k + 1] = add_product(acc[g][k + 1], w[g], high);
          }
        }
    }
    keep<G, P>(acc, sums);
  }
}

constexpr Shape<Bfloat16> half_shapes[] = {
    {1, 2, half_rows<1, 1, 2>, nullptr, half_rows<4, 1, 2>, products<Bfloat16, 1, 1, 2>,
     products<Bfloat16, 4, 1, 2>},
    {1, 3, nullptr, nullptr, half_rows<4, 1, 3>, nullptr, products<Bfloat16, 4, 1, 3>},
    {1, 4, half_rows<1, 1, 4>, nullptr, nullptr, products<Bfloat16, 1, 1, 4>,
     products<Bfloat16, 4, 1, 4>},
    {2, 2, half_rows<1, 2, 2>, nullptr, nullptr, products<Bfloat16, 1, 2, 2>,
     products<Bfloat16, 4, 2, 2>},
    {1, 7, half_rows<1, 1, 7>, nullptr, nullptr, products<Bfloat16, 1, 1, 7>, nullptr},
    {2, 4, half_rows<1, 2, 4>, nullptr, nullptr, products<Bfloat16, 1, 2, 4>, nullptr},
};

template <>
struct Loops<Bfloat16> {
  static constexpr auto& shapes = half_shapes;
  static constexpr bool pairs = false;
  static Vec sum(const float* sums, int k) {
    const Vec a = load(sums + k / 2 * 2 * LANES), b = load(sums + (k / 2 * 2 + 1) * LANES);
    if (k % 2 == 0)
      return __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    return __builtin_shufflevector(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30,
                                   31);
  }
};

}  // namespace
