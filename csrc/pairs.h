// Listing the non-zeros by pairs of outputs: what both have shares its loads.
#pragma once

#include <algorithm>

#include "stream.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

namespace {

// The two rows of a pair in a pass, spread out by offset, and the lists that are made of them: of
// what both have, of what the first and of what the second alone has.
struct Pair {
  int64_t length;  // offsets, in whole steps
  float* value[2];
  uint8_t* has[2];  // 0 or 1
  uint16_t* distances[3];
  float* values[3];  // of both by twos
  int64_t counts[3];

  static constexpr int64_t step = 16;
  static int64_t length_of(int64_t offsets) { return ceil_div(offsets, step) * step; }
  // Lists may be written up to a step beyond their ends.
  static int64_t floats(int64_t offsets) {
    return length_of(offsets) / 4 * 10 + (length_of(offsets) + step) / 2 * 11;
  }

  Pair(int64_t offsets, float* memory) : length(length_of(offsets)) {
    auto take = [&](int64_t floats) { return std::exchange(memory, memory + floats); };
    for (float*& row : value) row = take(length);
    for (uint8_t*& row : has) row = reinterpret_cast<uint8_t*>(take(length / 4));
    for (uint16_t*& list : distances) list = reinterpret_cast<uint16_t*>(take((length + step) / 2));
    for (int k = 0; k < 3; k++) values[k] = take((k ? 1 : 2) * (length + step));
  }

  // Makes the lists, with the distances in `table`; negative ones are left out.
  void divide(const int32_t* table) {
    int64_t both = 0, first = 0, second = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    alignas(64) static constexpr int32_t order[2][step] = {
        {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23},
        {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31}};
    const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
    for (int64_t i = 0; i < length; i += step) {
      const __m512i distance = _mm512_loadu_si512(table + i);
      const uint32_t used = _mm512_movepi32_mask(distance) ^ 0xffff;
      const uint32_t a = used & bits(has[0] + i), b = used & bits(has[1] + i);
      if (!(a | b)) continue;
      const __m512 x = _mm512_loadu_ps(value[0] + i), y = _mm512_loadu_ps(value[1] + i);
      auto put = [&](uint32_t which, uint16_t* to) {
        const __m512i chosen = _mm512_maskz_compress_epi32(static_cast<__mmask16>(which), distance);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(chosen));
      };
      auto chosen = [](uint32_t which, __m512 v) {
        return _mm512_maskz_compress_ps(static_cast<__mmask16>(which), v);
      };
      put(a & b, distances[0] + both);
      const __m512 u = chosen(a & b, x), v = chosen(a & b, y);
      _mm512_storeu_ps(values[0] + 2 * both, _mm512_permutex2var_ps(u, low, v));
      _mm512_storeu_ps(values[0] + 2 * both + step, _mm512_permutex2var_ps(u, high, v));
      put(a & ~b, distances[1] + first);
      _mm512_storeu_ps(values[1] + first, chosen(a & ~b, x));
      put(b & ~a, distances[2] + second);
      _mm512_storeu_ps(values[2] + second, chosen(b & ~a, y));
      both += __builtin_popcount(a & b);
      first += __builtin_popcount(a & ~b);
      second += __builtin_popcount(b & ~a);
    }
#else
    // Everything is written in any case: branches would often be guessed wrongly.
    for (int64_t i = 0; i < length; i++) {
      const int used = table[i] >= 0, a = used & has[0][i], b = used & has[1][i];
      distances[0][both] = distances[1][first] = distances[2][second] =
          static_cast<uint16_t>(table[i]);
      values[0][2 * both] = values[1][first] = value[0][i];
      values[0][2 * both + 1] = values[2][second] = value[1][i];
      both += a & b;
      first += a & ~b;
      second += b & ~a;
    }
#endif
    counts[0] = both;
    counts[1] = first;
    counts[2] = second;
  }

 private:
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  static uint32_t bits(const uint8_t* bytes) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    return _mm_test_epi8_mask(v, v);
  }
#endif
};

// Lists a group and pass, of `merge` blocks of the index, by pairs of rows.
template <class Source>
inline void list_pairs(const Source& source, const Stream<float>& s, const Lists<float>& to,
                       const int32_t* table, int taps, int64_t rows, int64_t group, int64_t pass,
                       int64_t merge, Pair pair) {
  const int64_t first = pass * merge, last = minimum(first + merge, source.block_count());
  const int64_t offsets = int64_t{source.block()} * taps;
  int64_t e = source.begin(group, first), v = e;
  int32_t* starts = to.starts + (group * s.passes + pass) * s.starts_step;
  for (int64_t r = 0; r < s.row_groups; r++, starts += 4) {
    for (int k = 0; k < 2; k++) {
      std::memset(pair.has[k], 0, pair.length);
      if (2 * r + k >= rows) continue;
      for (int64_t block = first; block < last; block++) {
        float* value = pair.value[k] + (block - first) * offsets;
        uint8_t* has = pair.has[k] + (block - first) * offsets;
        source.each(group, block, 2 * r + k, [=](uint32_t offset, float x) {
          value[offset] = x;
          has[offset] = 1;
        });
      }
    }
    pair.divide(table);
    starts[3] = static_cast<int32_t>(v);
    for (int k = 0; k < 3; k++) {
      starts[k] = static_cast<int32_t>(e);
      std::copy_n(pair.distances[k], pair.counts[k], to.distance + e);
      e += pair.counts[k];
      const int64_t values = (k ? 1 : 2) * pair.counts[k];
      std::copy_n(pair.values[k], values, to.values + v);
      v += values;
    }
  }
  *starts = static_cast<int32_t>(e);
}

}  // namespace
