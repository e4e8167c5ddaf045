// The inner loops. Sums and inputs of a tile are H × W vectors, held in registers.
#pragma once

#include "stream.h"

namespace {

// Adds to `acc` what the entries from `e` to `end` contribute, each of one value.
template <int H, int W>
inline __attribute__((always_inline)) void accumulate(Vec (&acc)[H * W], const float* patch,
                                                      int64_t stride, const uint16_t* distance,
                                                      int32_t e, int32_t end, const float* value) {
  for (; e < end; e++, value++) {
    const float* x = patch + distance[e];
    const Vec w = broadcast(*value);
#pragma GCC unroll 16
    for (int i = 0; i < H; i++, x += stride) {
      if (H > 1) STEP(x);
#pragma GCC unroll 16
      for (int j = 0; j < W; j++) acc[i * W + j] += w * load(x + j * LANES);
    }
  }
}

template <int G, int P>
inline __attribute__((always_inline)) void fetch(Vec (&acc)[G][P], const float* sums, bool first) {
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 16
    for (int k = 0; k < P; k++) acc[g][k] = first ? Vec{} : load(sums + (g * P + k) * LANES);
}

template <int G, int P>
inline __attribute__((always_inline)) void keep(const Vec (&acc)[G][P], float* sums) {
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 16
    for (int k = 0; k < P; k++) store(sums + (g * P + k) * LANES, acc[g][k]);
}

// The sums of the row groups from `begin` to `end`, in one pass; `sums` starts at the former.
template <class Number>
using Rows = void (*)(const Stream<Number>&, const int32_t* starts, int64_t begin, int64_t end,
                      const Number* patch, int64_t stride, float* sums, bool first);

template <int H, int W>
void single_rows(const Stream<float>& s, const int32_t* starts, int64_t begin, int64_t end,
                 const float* patch, int64_t stride, float* sums, bool first) {
  for (int64_t r = begin; r < end; r++, sums += H * W * LANES) {
    Vec acc[1][H * W];
    fetch<1, H * W>(acc, sums, first);
    accumulate<H, W>(acc[0], patch, stride, s.distance, starts[r], starts[r + 1],
                     s.values + starts[r]);
    keep<1, H * W>(acc, sums);
  }
}

template <int H, int W>
void pair_rows(const Stream<float>& s, const int32_t* starts, int64_t begin, int64_t end,
               const float* patch, int64_t stride, float* sums, bool first) {
  for (int64_t r = begin; r < end; r++, sums += 2 * H * W * LANES) {
    const int32_t* start = starts + 4 * r;
    Vec acc[2][H * W];
    fetch<2, H * W>(acc, sums, first);
    const float* value = s.values + start[3];
    for (int32_t e = start[0]; e < start[1]; e++, value += 2) {
      const float* x = patch + s.distance[e];
      const Vec v = broadcast(value[0]), w = broadcast(value[1]);
#pragma GCC unroll 16
      for (int i = 0; i < H; i++, x += stride) {
        if (H > 1) STEP(x);
#pragma GCC unroll 16
        for (int j = 0; j < W; j++) {
          Vec a = load(x + j * LANES);
          PIN(a);
          acc[0][i * W + j] += v * a;
          acc[1][i * W + j] += w * a;
        }
      }
    }
    accumulate<H, W>(acc[0], patch, stride, s.distance, start[1], start[2], value);
    value += start[2] - start[1];
    accumulate<H, W>(acc[1], patch, stride, s.distance, start[2], start[4], value);
    keep<2, H * W>(acc, sums);
  }
}

template <int H, int W>
void block_rows(const Stream<float>& s, const int32_t* starts, int64_t begin, int64_t end,
                const float* patch, int64_t stride, float* sums, bool first) {
  for (int64_t r = begin; r < end; r++, sums += 4 * H * W * LANES) {
    Vec acc[4][H * W];
    fetch<4, H * W>(acc, sums, first);
    for (int32_t e = starts[r]; e < starts[r + 1]; e++) {
      const float* x = patch + s.distance[e];
      const float* value = s.values + 4 * int64_t{e};
      const Vec a = broadcast(value[0]), b = broadcast(value[1]), c = broadcast(value[2]),
                d = broadcast(value[3]);
#pragma GCC unroll 16
      for (int i = 0; i < H; i++, x += stride) {
        if (H > 1) STEP(x);
#pragma GCC unroll 16
        for (int j = 0; j < W; j++) {
          const int k = i * W + j;
          Vec v = load(x + j * LANES);
          PIN(v);
          acc[0][k] += a * v;
          acc[1][k] += b * v;
          acc[2][k] += c * v;
          acc[3][k] += d * v;
        }
      }
    }
    keep<4, H * W>(acc, sums);
  }
}

// Non-zeros whose products wait in the first level of the cache to be summed over the lanes.
constexpr int waiting = 64;

// Adds the sums of `count` vectors to `to`.
__attribute__((noinline)) void add_sums(const float* vectors, int64_t count, float* to) {
  for (; count > 0; count -= LANES, vectors += LANES * LANES, to += LANES) {
    Vec v[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) v[i] = load(vectors + i * LANES);
    const Vec total = sums(v);
    if (count >= LANES) {
      store(to, load(to) + total);
    } else {
      for (int i = 0; i < count; i++) to[i] += total[i];
    }
  }
}

// Stores the products of the gradients `d` of a row group and the input of an entry, still to be
// summed over the lanes.
template <int H, int W, class Number, class Numbers, int G>
inline __attribute__((always_inline)) void store_products(const Number* x, int64_t stride,
                                                          const Numbers (&d)[G][H * W], float* to) {
  // Two sums where there are enough products: each waits for the one before.
  constexpr int chains = G == 1 && H * W >= 7 ? 2 : 1;
  Vec acc[G][chains];
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
#pragma GCC unroll 2
    for (int c = 0; c < chains; c++) acc[g][c] = Vec{};
#pragma GCC unroll 16
  for (int i = 0; i < H; i++, x += stride) {
    STEP(x);
#pragma GCC unroll 16
    for (int j = 0; j < W; j++) {
      Numbers v = load(x + j * LANES * per_float<Number>);
      if (G > 1) PIN(v);
#pragma GCC unroll 4
      for (int g = 0; g < G; g++) {
        Vec& sum = acc[g][(i * W + j) % chains];
        sum = add_product(sum, d[g][i * W + j], v);
      }
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < G; g++)
    store(to + g * LANES, chains == 2 ? acc[g][0] + acc[g][chains - 1] : acc[g][0]);
}

// Adds to `to`, the gradients of the values, what one tile contributes by the row groups from
// `begin` to `end`; `dy` starts at the former.
template <class Number>
using Products = void (*)(const Stream<Number>&, const int32_t* starts, int64_t begin, int64_t end,
                          const Number* patch, int64_t stride, const Number* dy, float* to);

template <class Number, int G, int H, int W>
void products(const Stream<Number>& s, const int32_t* starts, int64_t begin, int64_t end,
              const Number* patch, int64_t stride, const Number* dy, float* to) {
  constexpr int length = LANES * per_float<Number>;
  alignas(64) float vectors[waiting * LANES];
  const uint16_t* const distance = s.distance;  // the compiler would fetch it after every store
  int32_t e = starts[begin], from = e, full = e + waiting / G;
  for (int64_t r = begin; r < end; r++, dy += G * H * W * length) {
    decltype(load(patch)) d[G][H * W];
#pragma GCC unroll 4
    for (int g = 0; g < G; g++)
#pragma GCC unroll 16
      for (int k = 0; k < H * W; k++) {
        d[g][k] = load(dy + (g * H * W + k) * length);
        PIN(d[g][k]);
      }
    const int32_t last = starts[r + 1];
    while (e < last) {
      float* slot = vectors + (e - from) * (G * LANES);
      const int32_t stop = minimum(last, full);
      for (; e < stop; e++, slot += G * LANES)
        store_products<H, W>(patch + distance[e], stride, d, slot);
      if (e == full) {
        add_sums(vectors, waiting, to + int64_t{from} * G);
        from = e;
        full = e + waiting / G;
      }
    }
  }
  add_sums(vectors, int64_t{e - from} * G, to + int64_t{from} * G);
}

// A shape of tile for which there are inner loops; null where registers do not suffice.
template <class Number>
struct Shape {
  int h, w;
  Rows<Number> single, pair, block;
  Products<Number> single_products, block_products;
};

template <class Number>
inline Rows<Number> rows_loop(const Shape<Number>& shape, Grouping g) {
  return g == Grouping::single ? shape.single : g == Grouping::pair ? shape.pair : shape.block;
}

template <class Number>
inline Products<Number> products_loop(const Shape<Number>& shape, Grouping g) {
  return g == Grouping::single  ? shape.single_products
         : g == Grouping::block ? shape.block_products
                                : nullptr;
}

// What a tile can be for a type of number, and how its sums are read.
template <class Number>
struct Loops;

#if LANES == 16 || defined(__aarch64__)
// 32 registers.
constexpr Shape<float> float_shapes[] = {
    {1, 4, single_rows<1, 4>, pair_rows<1, 4>, block_rows<1, 4>, products<float, 1, 1, 4>,
     products<float, 4, 1, 4>},
    {1, 6, nullptr, nullptr, block_rows<1, 6>, nullptr, products<float, 4, 1, 6>},
    {2, 3, nullptr, nullptr, block_rows<2, 3>, nullptr, products<float, 4, 2, 3>},
    {1, 7, single_rows<1, 7>, pair_rows<1, 7>, nullptr, products<float, 1, 1, 7>, nullptr},
    {1, 8, single_rows<1, 8>, pair_rows<1, 8>, nullptr, products<float, 1, 1, 8>, nullptr},
    {2, 4, single_rows<2, 4>, pair_rows<2, 4>, nullptr, products<float, 1, 2, 4>, nullptr},
    {2, 7, single_rows<2, 7>, nullptr, nullptr, products<float, 1, 2, 7>, nullptr},
    {4, 4, nullptr, nullptr, nullptr, products<float, 1, 4, 4>, nullptr},
};
#else
// 16 registers.
constexpr Shape<float> float_shapes[] = {
    {1, 2, nullptr, nullptr, block_rows<1, 2>, nullptr, products<float, 4, 1, 2>},
    {1, 4, single_rows<1, 4>, pair_rows<1, 4>, nullptr, products<float, 1, 1, 4>, nullptr},
    {1, 7, single_rows<1, 7>, nullptr, nullptr, products<float, 1, 1, 7>, nullptr},
    {1, 8, single_rows<1, 8>, nullptr, nullptr, products<float, 1, 1, 8>, nullptr},
    {2, 4, single_rows<2, 4>, nullptr, nullptr, products<float, 1, 2, 4>, nullptr},
};
#endif

template <>
struct Loops<float> {
  static constexpr auto& shapes = float_shapes;
  static constexpr bool pairs = true;
  static Vec sum(const float* sums, int k) { return load(sums + k * LANES); }
};

}  // namespace
