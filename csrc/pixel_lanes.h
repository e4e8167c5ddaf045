// Tiles whose lanes are neighbouring pixels of one image.
#pragma once

#include "tile.h"

namespace {

constexpr int most_pixels = most_vectors * LANES;

// Where the pixels of a task of pixel lanes lie in `view`, without channels; -1 where there is
// none.
inline void pixel_offsets(const Problem& p, const Tile& t, const Place& at, const View& view,
                          int64_t* offsets) {
  int64_t i = at.first / t.stride, j = at.first % t.stride;
  for (int k = 0; k < t.w * t.lanes(); k++) {
    const bool inside = i < p.out_h && j < p.out_w;
    offsets[k] = inside ? at.images * view.n + i * view.h + j * view.w : -1;
    if (++j == t.stride) {
      j = 0;
      i++;
    }
  }
}

// Whether LANES pixels exist and lie one after the other.
inline bool together(const int64_t* offsets) {
  for (int i = 0; i < LANES; i++)
    if (offsets[i] < 0 || offsets[i] != offsets[0] + i) return false;
  return true;
}

inline Vec load_pixels(const float* from, const int64_t* offsets, bool contiguous) {
  if (contiguous) return load(from + offsets[0]);
  float v[LANES];
  for (int i = 0; i < LANES; i++) v[i] = offsets[i] < 0 ? 0.0f : from[offsets[i]];
  return load(v);
}

inline void store_pixels(float* to, const int64_t* offsets, bool contiguous, Vec v) {
  if (contiguous) return store(to + offsets[0], v);
  for (int i = 0; i < LANES; i++)
    if (offsets[i] >= 0) to[offsets[i]] = v[i];
}

// Packs `channels` channels from `channel` on of what a task of pixel lanes reads.
template <class Number>
inline void pack_pixel_lanes(const Problem& p, const Tile& t, const Place& at, int64_t channel,
                             int64_t channels, Number* patch) {
  const float* from = p.in.data + at.images * p.in.n + channel * p.in.c;
  for (int64_t c = 0; c < channels; c++, from += p.in.c)
    for (int k = 0; k < p.planes; k++) {
      const Plane& a = p.plane[k];
      const int64_t step = a.step_w * p.in.w;
      // The columns whose pixels exist.
      const int64_t low = maximum<int64_t>(0, ceil_div(maximum<int64_t>(-a.origin_w, 0), a.step_w));
      const int64_t last = p.in_w - 1 - a.origin_w;
      const int64_t high = last < 0 ? 0 : last / a.step_w + 1;
      int64_t left = plane_size(p, t, k), i = at.first / t.stride, j = at.first % t.stride;
      for (; left > 0; i++, j = 0) {
        const int64_t count = minimum(left, t.stride - j), h = i * a.step_h + a.origin_h;
        const bool inside = h >= 0 && h < p.in_h;
        const int64_t begin = inside ? minimum(maximum(low - j, int64_t{0}), count) : count;
        const int64_t end = inside ? maximum(minimum(high - j, count), begin) : count;
        const float* row = from + h * p.in.h + a.origin_w * p.in.w + j * step;
        for (int64_t x = 0; x < begin; x++) patch[x] = Number(0.0f);
        if (step == 1) {
          for (int64_t x = begin; x < end; x++) patch[x] = Number(row[x]);
        } else {
          for (int64_t x = begin; x < end; x++) patch[x] = Number(row[x * step]);
        }
        for (int64_t x = end; x < count; x++) patch[x] = Number(0.0f);
        patch += count;
        left -= count;
      }
    }
}

// Packs the pixels of a task of pixel lanes, zeros where there are none.
template <class Number>
inline void pack_output_lanes(const Problem& p, const Tile& t, const Place& at, const View& view,
                              int64_t channel, int64_t channels, Number* to) {
  int64_t offsets[most_pixels];
  pixel_offsets(p, t, at, view, offsets);
  const float* from = view.data + channel * view.c;
  for (int k = 0; k < t.vectors(); k++) {
    const int64_t* pixels = offsets + k * LANES;
    const bool contiguous = together(pixels);
    for (int64_t c = 0; c < channels; c++)
      store(to + (c * t.vectors() + k) * LANES, load_pixels(from + c * view.c, pixels, contiguous));
  }
}

}  // namespace
