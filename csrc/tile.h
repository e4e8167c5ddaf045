// Tiles of the output and the packing of the input they read.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace {

using isoflop::Activation;
using isoflop::Epilogue;
using isoflop::Geometry;
using isoflop::Index;
using isoflop::View;

// --- What is computed -------------------------------------------------------------------------

// The pixels of the input that one phase of a strided kernel reads: plane row r is input row
// r * step + origin.
struct Plane {
  int64_t step_h, step_w, origin_h, origin_w;
  int64_t most_h, most_w;  // greatest shifts of its taps
};

struct Tap {
  int32_t plane;  // negative: not used
  int32_t shift_h, shift_w;
};

// out[row](i, j) = sum of value * in[channel](i + shift_h, j + shift_w), in each group.
struct Problem {
  int64_t n, groups, rows, channels;  // rows and channels of a group
  int64_t out_h, out_w, in_h, in_w;
  View in, out;
  int planes;
  Plane* plane;
  Tap* tap;  // [kh * kw]

  // End of the group that a channel belongs to.
  int64_t channels_end(int64_t channel) const { return (channel / channels + 1) * channels; }
};

// --- Tiles ------------------------------------------------------------------------------------

// Vectors of sums of a tile.
constexpr int most_vectors = 16;

struct Tile {
  int h, w;        // vectors of the packed input
  int parts;       // vectors of floats for one of those
  bool pointwise;  // the vectors are any pixels of any images, one after the other
  // For few images: the lanes are neighbouring pixels of one image, row after row. Each row is as
  // long as that of the packed input, so that a tap is the same distance away for all.
  bool pixel_lanes;
  int64_t stride;   // numbers between two rows of the packed input
  int64_t unit;     // numbers between two pixels of it
  int64_t channel;  // numbers of a packed channel
  int64_t tasks, tiles_w, image_groups;

  int lanes() const { return parts * LANES; }
  // Vectors of sums, and the floats in them.
  int vectors() const { return h * w * parts; }
  int64_t length() const { return int64_t{vectors()} * LANES; }
  int64_t packed_vectors() const { return ceil_div(channel, LANES); }
};

inline int64_t plane_size(const Problem& p, const Tile& t, int plane) {
  const Plane& a = p.plane[plane];
  if (t.pixel_lanes) return t.w * t.lanes() + a.most_h * t.stride + a.most_w;
  return (t.h + a.most_h) * t.stride;
}

inline bool is_pointwise(const Problem& p) {
  if (p.planes != 1) return false;
  const Plane& a = p.plane[0];
  return a.most_h == 0 && a.most_w == 0 && a.origin_h == 0 && a.origin_w == 0 &&
         (p.out_h - 1) * a.step_h < p.in_h && (p.out_w - 1) * a.step_w < p.in_w;
}

inline Tile make_tile(const Problem& p, int h, int w, int parts, bool pixel_lanes) {
  Tile t{};
  t.h = h;
  t.w = w;
  t.parts = parts;
  t.pixel_lanes = pixel_lanes;
  t.image_groups = ceil_div(p.n, t.lanes());
  t.pointwise = !pixel_lanes && is_pointwise(p);
  int64_t most_w = 0;
  for (int k = 0; k < p.planes; k++) most_w = maximum(most_w, p.plane[k].most_w);
  t.unit = pixel_lanes ? 1 : t.lanes();
  t.stride = pixel_lanes ? p.out_w + most_w : (w + most_w) * t.lanes();
  for (int k = 0; k < p.planes; k++) t.channel += plane_size(p, t, k);
  if (pixel_lanes) {
    t.tiles_w = ceil_div(p.out_h * t.stride, w * t.lanes());
    t.tasks = p.n * t.tiles_w;
  } else if (t.pointwise) {
    t.tiles_w = ceil_div(p.out_h * p.out_w * t.image_groups, h * w);
    t.tasks = t.tiles_w;
  } else {
    t.tiles_w = ceil_div(p.out_w, w);
    t.tasks = ceil_div(p.out_h, h) * t.tiles_w * t.image_groups;
  }
  return t;
}

// Where the vectors of a task lie.
struct Place {
  int64_t first;  // pointwise: number of the first packed vector; pixel lanes: of the first pixel
  int64_t i, j, images;  // first pixel, first image
};

inline Place place(const Tile& t, int64_t task) {
  Place at{};
  if (t.pixel_lanes) {
    at.images = task / t.tiles_w;
    at.first = task % t.tiles_w * t.w * t.lanes();
  } else if (t.pointwise) {
    at.first = task * t.h * t.w;
  } else {
    // Neighbouring groups of images lie side by side in memory.
    at.images = task % t.image_groups * t.lanes();
    at.j = task / t.image_groups % t.tiles_w * t.w;
    at.i = task / t.image_groups / t.tiles_w * t.h;
  }
  return at;
}

// A pixel of LANES images: its start, without channels, and how many of the images exist.
struct Spot {
  int64_t offset;
  int lanes;
};

// Adds the spots of a packed vector: a pixel of the images from `images` on, or nothing.
inline Spot* add_spots(const Problem& p, const Tile& t, const View& view, bool exists, int64_t h,
                       int64_t w, int64_t images, Spot* spots) {
  for (int part = 0; part < t.parts; part++, images += LANES) {
    const int64_t lanes = exists ? minimum<int64_t>(LANES, p.n - images) : 0;
    *spots++ = lanes > 0 ? Spot{h * view.h + w * view.w + images * view.n, static_cast<int>(lanes)}
                         : Spot{0, 0};
  }
  return spots;
}

// Fills `spots` with the vectors of a pointwise task; pixels of `view` are steps apart.
inline void pointwise_spots(const Problem& p, const Tile& t, const Place& at, const View& view,
                            int64_t step_h, int64_t step_w, Spot* spots) {
  const int64_t all = p.out_h * p.out_w * t.image_groups;
  for (int64_t q = at.first; q < at.first + t.h * t.w; q++) {
    const int64_t pixel = q / t.image_groups;
    spots = add_spots(p, t, view, q < all, pixel / p.out_w * step_h, pixel % p.out_w * step_w,
                      q % t.image_groups * t.lanes(), spots);
  }
}

// Fills `spots` with the vectors of a task in `view`, which has the pixels of the output.
inline void output_spots(const Problem& p, const Tile& t, const Place& at, const View& view,
                         Spot* spots) {
  if (t.pointwise) return pointwise_spots(p, t, at, view, 1, 1, spots);
  for (int i = 0; i < t.h; i++)
    for (int j = 0; j < t.w; j++) {
      const bool inside = at.i + i < p.out_h && at.j + j < p.out_w;
      spots = add_spots(p, t, view, inside, at.i + i, at.j + j, at.images, spots);
    }
}

// --- Packing ----------------------------------------------------------------------------------

// Copies `channels` channels of a spot to `to`, `stride` numbers apart, where images do not lie
// next to each other.
template <class Number>
inline void gather(const View& view, const float* from, Spot s, int64_t channels, Number* to,
                   int64_t stride) {
  if (s.lanes == 0) {
    for (int64_t c = 0; c < channels; c++) store(to + c * stride, Vec{});
  } else if (s.lanes == LANES && view.c == 1) {
    from += s.offset;
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) {
      Vec rows[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) rows[i] = load(from + i * view.n + c);
      transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) store(to + (c + i) * stride, rows[i]);
    }
    for (; c < channels; c++)
      for (int i = 0; i < LANES; i++) to[c * stride + i] = Number(from[i * view.n + c]);
  } else {
    from += s.offset;
    for (int64_t c = 0; c < channels; c++) {
      for (int i = 0; i < LANES; i++)
        to[c * stride + i] = Number(i < s.lanes ? from[i * view.n + c * view.c] : 0.0f);
    }
  }
}

// Packs `channels` channels from `channel` on of `count` spots, side by side.
template <class Number>
inline void pack_pixels(const View& view, const Spot* spots, int64_t count, int64_t channel,
                        int64_t channels, Number* to, int64_t stride) {
  const float* from = view.data + channel * view.c;
  if (view.n != 1) {
    for (int64_t k = 0; k < count; k++)
      gather(view, from, spots[k], channels, to + k * LANES, stride);
    return;
  }
  // Channel by channel: those of one pixel lie far apart.
  for (int64_t c = 0; c < channels; c++, from += view.c, to += stride)
    for (int64_t k = 0; k < count; k++) {
      const Spot s = spots[k];
      if (s.lanes == LANES) {
        store(to + k * LANES, load(from + s.offset));
      } else {
        for (int i = 0; i < LANES; i++)
          to[k * LANES + i] = Number(i < s.lanes ? from[s.offset + i] : 0.0f);
      }
    }
}

// The spots that a task reads, in the order in which they are packed.
inline void input_spots(const Problem& p, const Tile& t, const Place& at, Spot* spots) {
  if (t.pointwise)
    return pointwise_spots(p, t, at, p.in, p.plane[0].step_h, p.plane[0].step_w, spots);
  for (int k = 0; k < p.planes; k++) {
    const Plane& a = p.plane[k];
    for (int64_t i = 0; i < t.h + a.most_h; i++) {
      int64_t h = (at.i + i) * a.step_h + a.origin_h;
      for (int64_t j = 0; j < t.stride / t.lanes(); j++) {
        int64_t w = (at.j + j) * a.step_w + a.origin_w;
        bool inside = j < t.w + a.most_w && h >= 0 && h < p.in_h && w >= 0 && w < p.in_w;
        spots = add_spots(p, t, p.in, inside, h, w, at.images, spots);
      }
    }
  }
}

// Packs `channels` channels of the pixels `spots` from `channel` on. What the next pass will read,
// `ahead` channels on, is fetched into the second level of the cache.
template <class Number>
inline void pack(const Problem& p, const Tile& t, const Spot* spots, int64_t channel,
                 int64_t channels, int64_t ahead, Number* patch) {
  const int64_t count = t.packed_vectors();
  pack_pixels(p.in, spots, count, channel, channels, patch, t.channel);
  if (p.in.n != 1) return;
  channel += ahead;
  int64_t end = minimum(channel + channels, p.channels_end(channel - ahead));
  for (; channel < end; channel++) {
    const float* next = p.in.data + channel * p.in.c;
    for (int64_t k = 0; k < count; k++)
      if (spots[k].lanes) __builtin_prefetch(next + spots[k].offset, 0, 2);
  }
}

}  // namespace
