// The forward pass of linear layers on few rows, such as the next token of a text.
//
// With few rows to share it, listing the non-zeros costs more than the products, and lanes of rows
// would mostly be empty. So the lanes are non-zeros here, read as the index has them: a block of
// inputs, at most 64, is held in four vectors, out of which a shuffle takes those that the
// non-zeros read.
#pragma once

#include "epilogue.h"
#include "memory.h"

#if LANES == 16
#include <immintrin.h>

#include <algorithm>

namespace {

constexpr int64_t most_few_rows = 16;  // more are faster by the other way
constexpr int few_block = 64;          // inputs that four vectors hold
constexpr int few_at_once = 4;         // rows whose inputs are held
constexpr int few_sums = 256;          // vectors of sums, in the first level of the cache
constexpr int few_groups = few_sums / few_at_once;        // of outputs
constexpr int most_few_outputs = 4 * few_groups + LANES;  // with room for a whole vector

inline bool is_small_batch(const Problem& p, const Index& index, int taps) {
  return taps == 1 && p.n <= most_few_rows && p.out_h == 1 && p.out_w == 1 && is_pointwise(p) &&
         index.block_in <= few_block;
}

inline Vec as_multiplied(Vec v, float) { return v; }
#if defined(__AVX512BF16__)
inline Vec as_multiplied(Vec v, Bfloat16) {
  const __m512i halves = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
  return (Vec)_mm512_slli_epi32(halves, 16);
}
#endif

// Sixteen products: of as many entries, or of four that four outputs share.
template <int R>
struct Entries {
  static constexpr int count = LANES / R;
  __m512i offsets;  // that of each product
  Vec values;
  __mmask16 mask;

  Entries(const Index& index, const float* from, int64_t e, int64_t end) {
    const int64_t left = minimum<int64_t>(end - e, count);
    mask = static_cast<__mmask16>((1u << left * R) - 1);
    values = (Vec)_mm512_maskz_loadu_ps(mask, from + e * R);
    if constexpr (R == 1) {
      offsets = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, index.offsets + e));
    } else {
      const __m128i own = _mm_maskz_loadu_epi16((1 << left) - 1, index.offsets + e);
      const __m512i each = _mm512_broadcastq_epi64(own);
      // Lane i of 128 bits gets offset i, four times, as 32 bits.
      const __m512i which = _mm512_set_epi64(
          0x8080070680800706, 0x8080070680800706, 0x8080050480800504, 0x8080050480800504,
          0x8080030280800302, 0x8080030280800302, 0x8080010080800100, 0x8080010080800100);
      offsets = _mm512_shuffle_epi8(each, which);
    }
  }
};

// The inputs that entries read, of the 64 in `x`.
inline Vec taken(const Vec (&x)[4], __m512i offsets) {
  const __m512 low = _mm512_permutex2var_ps((__m512)x[0], offsets, (__m512)x[1]);
  const __m512 high = _mm512_permutex2var_ps((__m512)x[2], offsets, (__m512)x[3]);
  return (Vec)_mm512_mask_blend_ps(_mm512_test_epi32_mask(offsets, _mm512_set1_epi32(32)), low,
                                   high);
}

// Adds to `sums`, a vector for each row group from `begin` to `end` and each of N rows, what a
// block of inputs contributes.
template <class Number, int R, int N>
void add_few(const Index& index, const float* values, const int32_t* starts, int64_t begin,
             int64_t end, const float* inputs, int64_t stride, float* sums) {
  Vec x[N][4];
  for (int n = 0; n < N; n++)
    for (int i = 0; i < 4; i++) x[n][i] = load(inputs + n * stride + i * LANES);
  for (int64_t r = begin; r < end; r++, sums += N * LANES) {
    Vec acc[N];
    for (int n = 0; n < N; n++) acc[n] = load(sums + n * LANES);
    for (int64_t e = starts[r]; e < starts[r + 1]; e += Entries<R>::count) {
      const Entries<R> entries(index, values, e, starts[r + 1]);
      const Vec v = as_multiplied(entries.values, Number());
#pragma GCC unroll 4
      for (int n = 0; n < N; n++)
        acc[n] = (Vec)_mm512_mask3_fmadd_ps((__m512)v, (__m512)taken(x[n], entries.offsets),
                                            (__m512)acc[n], entries.mask);
    }
    for (int n = 0; n < N; n++) store(sums + n * LANES, acc[n]);
  }
}

// The outputs of `count` row groups: sums over lanes, `stride` floats from group to group.
template <int R>
void reduce_few(const float* sums, int64_t stride, int64_t count, float* to) {
  for (int64_t r = 0; r < count; r += LANES / R) {
    Vec rows[LANES];
    for (int i = 0; i < LANES; i++) {
      const int64_t group = r + i / R;
      if (group < count)
        rows[i] = load(sums + group * stride);
      else
        rows[i] = Vec{};
      // Of four outputs, each has a lane in four.
      if (R == 4)
        rows[i] =
            (Vec)_mm512_maskz_mov_ps(static_cast<__mmask16>(0x1111 << i % R), (__m512)rows[i]);
    }
    store(to + r * R, ::sums(rows));
  }
}

template <class Number, int R, int N>
void few_rows(const Problem& p, const Index& index, const float* values, int64_t group,
              int64_t begin, int64_t end, const float* inputs, int64_t stride, float* sums) {
  const int64_t blocks = ceil_div(p.channels, index.block_in), row_groups = p.rows / R;
  std::memset(sums, 0, (end - begin) * N * LANES * sizeof(float));
  for (int64_t block = 0; block < blocks; block++)
    add_few<Number, R, N>(index, values, index.starts + (group * blocks + block) * row_groups,
                          begin, end, inputs + block * index.block_in, stride, sums);
}

// Stores the sums of `rows` outputs of one image from channel `channel` on.
inline void finish_few(const Problem& p, const Epilogue& epilogue, int64_t image, int64_t channel,
                       int64_t rows, const float* sums) {
  const View& r = epilogue.residual;
  float* const to = p.out.data + image * p.out.n + channel * p.out.c;
  const float* const added = r.data + image * r.n + channel * r.c;
  for (int64_t row = 0; row < rows; row += LANES) {
    const int count = static_cast<int>(minimum<int64_t>(LANES, rows - row));
    Vec v = load(sums + row);
    for (int i = 0; i < count; i++) {
      if (epilogue.bias) v[i] += epilogue.bias[channel + row + i];
      if (r.data) v[i] += added[(row + i) * r.c];
    }
    v = activate(v, epilogue.activation);
    if (count == LANES && p.out.c == 1) {
      store(to + row, v);
    } else {
      for (int i = 0; i < count; i++) to[(row + i) * p.out.c] = v[i];
    }
  }
}

// The outputs of the row groups from `begin` to `end` for all images, N at a time; `sums` has room
// for all.
template <class Number, int R>
void few_outputs(const Problem& p, const Index& index, const float* values,
                 const Epilogue& epilogue, int64_t group, int64_t begin, int64_t end,
                 const float* inputs, int64_t stride, float* sums) {
  constexpr decltype(&few_rows<Number, R, 1>) loops[few_at_once] = {
      few_rows<Number, R, 1>, few_rows<Number, R, 2>, few_rows<Number, R, 3>,
      few_rows<Number, R, 4>};
  float* outputs = sums + few_sums * LANES;
  for (int64_t first = 0; first < p.n; first += few_at_once) {
    const int64_t count = minimum<int64_t>(few_at_once, p.n - first);
    loops[count - 1](p, index, values, group, begin, end, inputs + first * stride, stride, sums);
    for (int64_t k = 0; k < count; k++) {
      reduce_few<R>(sums + k * LANES, count * LANES, end - begin, outputs);
      finish_few(p, epilogue, first + k, group * p.rows + begin * R, (end - begin) * R, outputs);
    }
  }
}

template <class Number>
void multiply_small_batch(const Problem& p, const Index& index, const float* values,
                          const Epilogue& epilogue, int threads) {
  if (p.n == 0) return;
  Memory& m = memory();
  // What lies behind a block is loaded, and not used.
  const int64_t stride = ceil_div(p.channels, index.block_in) * index.block_in + few_block;
  float* inputs = reserve<float>(m.input_panels, p.groups * p.n * stride);
  for (int64_t row = 0; row < p.groups * p.n; row++) {
    const float* from = p.in.data + row % p.n * p.in.n + row / p.n * p.channels * p.in.c;
    float* to = inputs + row * stride;
    for (int64_t c = 0; c < p.channels; c++) to[c] = float(Number(from[c * p.in.c]));
    std::fill(to + p.channels, to + stride, 0.0f);
  }
  const int64_t row_groups = p.rows / index.rows;
  // Enough tasks for all threads.
  const int64_t each = ceil_div(row_groups * p.groups, int64_t{4} * threads);
  const int64_t chunk = minimum<int64_t>(few_groups, maximum<int64_t>(each, 16));
  const int64_t chunks = ceil_div(row_groups, chunk);
  const int64_t own = whole_pages(few_sums * LANES + most_few_outputs);
  float* buffers = reserve<float>(m.threads, own * threads);
  const auto outputs = index.rows == 4 ? few_outputs<Number, 4> : few_outputs<Number, 1>;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t task = 0; task < p.groups * chunks; task++) {
    const int64_t group = task / chunks, begin = task % chunks * chunk;
    outputs(p, index, values, epilogue, group, begin, minimum(begin + chunk, row_groups),
            inputs + group * p.n * stride, stride, buffers + own * omp_get_thread_num());
  }
}

}  // namespace
#endif
