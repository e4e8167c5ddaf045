// From the sums of a tile to what is stored.
#pragma once

#include "inner.h"
#include "pixel_lanes.h"

namespace {

inline Vec activate(Vec v, Activation a) {
  switch (a) {
    case Activation::relu:
      return v < 0.0f ? Vec{} : v;
    case Activation::gelu:
      return v * 0.5f * (1.0f + error_function(v * 0.70710678f));
    case Activation::silu:
      return v / (1.0f + exponential(-v));
    default:
      return v;
  }
}

// As `store_rows`, for a tile of pixel lanes.
template <class Number>
inline void store_pixel_lanes(const Problem& p, const Tile& t, const Place& at, int64_t channel,
                              int64_t rows, const float* sums, const Epilogue& epilogue) {
  int64_t offsets[most_pixels], others[most_pixels];
  pixel_offsets(p, t, at, p.out, offsets);
  const View& r = epilogue.residual;
  if (r.data) pixel_offsets(p, t, at, r, others);
  for (int k = 0; k < t.vectors(); k++) {
    const int64_t *pixels = offsets + k * LANES, *added = others + k * LANES;
    const bool contiguous = together(pixels), added_contiguous = r.data && together(added);
    for (int64_t row = 0; row < rows; row++) {
      const int64_t c = channel + row;
      Vec v = Loops<Number>::sum(sums + row * t.length(), k);
      if (epilogue.bias) v += broadcast(epilogue.bias[c]);
      if (r.data) v += load_pixels(r.data + c * r.c, added, added_contiguous);
      store_pixels(p.out.data + c * p.out.c, pixels, contiguous, activate(v, epilogue.activation));
    }
  }
}

// Stores the sums of `rows` outputs from channel `channel` on.
template <class Number>
inline void store_rows(const Problem& p, const Tile& t, const Place& at, int64_t channel,
                       int64_t rows, const float* sums, const Epilogue& epilogue) {
  const int count = t.vectors();
  if (t.pixel_lanes) return store_pixel_lanes<Number>(p, t, at, channel, rows, sums, epilogue);
  Spot spots[most_vectors], others[most_vectors];
  output_spots(p, t, at, p.out, spots);
  const View& r = epilogue.residual;
  if (r.data) output_spots(p, t, at, r, others);
  auto finish = [&](int64_t row, int k) {
    Vec v = Loops<Number>::sum(sums + row * t.length(), k);
    const int64_t c = channel + row;
    if (epilogue.bias) v += broadcast(epilogue.bias[c]);
    if (r.data) {
      const float* add = r.data + others[k].offset + c * r.c;
      if (spots[k].lanes == LANES && r.n == 1) {
        v += load(add);
      } else {
        for (int i = 0; i < spots[k].lanes; i++) v[i] += add[i * r.n];
      }
    }
    return activate(v, epilogue.activation);
  };
  float* const to = p.out.data + channel * p.out.c;
  const bool large = p.n * p.groups * p.rows * p.out_h * p.out_w * 4 > cached_bytes;
  if (p.out.n == 1) {
    for (int64_t row = 0; row < rows; row++)
      for (int k = 0; k < count; k++) {
        float* pixel = to + row * p.out.c + spots[k].offset;
        if (spots[k].lanes == LANES) {
          const Vec v = finish(row, k);
          if (large)
            store_past_caches(pixel, v);
          else
            store(pixel, v);
        } else if (spots[k].lanes) {
          Vec v = finish(row, k);
          for (int i = 0; i < spots[k].lanes; i++) pixel[i] = v[i];
        }
      }
    return;
  }
  for (int k = 0; k < count; k++) {
    if (spots[k].lanes == 0) continue;
    float* pixel = to + spots[k].offset;
    int64_t row = 0;
    if (spots[k].lanes == LANES && p.out.c == 1) {
      for (; row + LANES <= rows; row += LANES) {
        Vec v[LANES];
        for (int i = 0; i < LANES; i++) v[i] = finish(row + i, k);
        transpose(v);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) store(pixel + i * p.out.n + row, v[i]);
      }
    }
    for (; row < rows; row++) {
      Vec v = finish(row, k);
      for (int i = 0; i < spots[k].lanes; i++) pixel[row * p.out.c + i * p.out.n] = v[i];
    }
  }
}

}  // namespace
