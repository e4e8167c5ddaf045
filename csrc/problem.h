// The forward pass and the gradient of the input of any convolution, in one form.
#pragma once

#include "tile.h"

namespace {

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// One dimension of a kernel: which taps a phase uses, and where they read.
struct Reads {
  bool used;
  int64_t origin;  // of the plane, in steps of the input
  int64_t shift;
};

// Taps further apart than this many pixels get planes of their own, so that what lies between them
// is not packed.
constexpr int64_t widest_gap = 4;

inline Reads forward_reads(int64_t k, int64_t stride, int64_t pad, int64_t dilation) {
  int64_t distance = k * dilation;
  if (dilation > widest_gap * stride) return {true, distance - pad, 0};
  return {true, distance % stride - pad, distance / stride};
}

// Pixel i * stride + phase of the input has got from tap k pixel i + (phase + pad - k * dilation) /
// stride of the output, if that is an integer.
inline Reads backward_reads(int64_t k, int64_t taps, int64_t stride, int64_t pad, int64_t dilation,
                            int64_t phase) {
  int64_t distance = phase + pad - k * dilation;
  if (floor_div(distance, stride) * stride != distance) return {false, 0, 0};
  int64_t shift = distance / stride;
  if (dilation > widest_gap * stride) return {true, shift, 0};
  int64_t least = floor_div(phase + pad - (taps - 1) * dilation, stride);
  return {true, least, shift - least};
}

// Collects the planes of the taps; `reads_h` and `reads_w` say where tap k of a dimension reads.
template <class ReadsH, class ReadsW>
inline void set_taps(Problem& p, int64_t kh, int64_t kw, int64_t step_h, int64_t step_w,
                     ReadsH reads_h, ReadsW reads_w) {
  p.planes = 0;
  for (int64_t y = 0; y < kh; y++)
    for (int64_t x = 0; x < kw; x++) {
      Reads h = reads_h(y), w = reads_w(x);
      Tap& tap = p.tap[y * kw + x];
      tap = {-1, 0, 0};
      if (!h.used || !w.used) continue;
      int k = 0;
      while (k < p.planes && (p.plane[k].origin_h != h.origin || p.plane[k].origin_w != w.origin))
        k++;
      if (k == p.planes) p.plane[p.planes++] = {step_h, step_w, h.origin, w.origin, 0, 0};
      p.plane[k].most_h = maximum(p.plane[k].most_h, h.shift);
      p.plane[k].most_w = maximum(p.plane[k].most_w, w.shift);
      tap = {k, static_cast<int32_t>(h.shift), static_cast<int32_t>(w.shift)};
    }
}

inline Problem forward_problem(const Geometry& g, const View& x, const View& y, Plane* planes,
                               Tap* taps) {
  Problem p{g.n,    g.groups, g.out / g.groups, g.in / g.groups, g.oh, g.ow, g.h, g.w, x, y, 0,
            planes, taps};
  set_taps(
      p, g.kh, g.kw, g.stride_h, g.stride_w,
      [&](int64_t k) { return forward_reads(k, g.stride_h, g.pad_h, g.dilation_h); },
      [&](int64_t k) { return forward_reads(k, g.stride_w, g.pad_w, g.dilation_w); });
  return p;
}

// Pixels (i * stride_h + phase_h, j * stride_w + phase_w) of the gradient of the input.
inline Problem backward_problem(const Geometry& g, const View& dy, View dx, int64_t phase_h,
                                int64_t phase_w, Plane* planes, Tap* taps) {
  dx.data += phase_h * dx.h + phase_w * dx.w;
  dx.h *= g.stride_h;
  dx.w *= g.stride_w;
  Problem p{g.n,
            g.groups,
            g.in / g.groups,
            g.out / g.groups,
            ceil_div(g.h - phase_h, g.stride_h),
            ceil_div(g.w - phase_w, g.stride_w),
            g.oh,
            g.ow,
            dy,
            dx,
            0,
            planes,
            taps};
  set_taps(
      p, g.kh, g.kw, 1, 1,
      [&](int64_t k) {
        return backward_reads(k, g.kh, g.stride_h, g.pad_h, g.dilation_h, phase_h);
      },
      [&](int64_t k) {
        return backward_reads(k, g.kw, g.stride_w, g.pad_w, g.dilation_w, phase_w);
      });
  return p;
}

// One image whose pixels lie one after the other is as good as that many images of one pixel.
inline Geometry with_pixels_as_images(Geometry g, View& a, View& b) {
  bool plain = g.n == 1 && g.kh == 1 && g.kw == 1 && g.stride_h == 1 && g.stride_w == 1 &&
               g.pad_h == 0 && g.pad_w == 0;
  if (!plain || a.h != g.w * a.w || b.h != g.w * b.w) return g;
  a.n = a.w;
  b.n = b.w;
  g.n = g.h * g.w;
  g.h = g.w = g.oh = g.ow = 1;
  return g;
}

}  // namespace
