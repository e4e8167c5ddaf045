// The kernels in plain C++: the definition of what they compute, and the fallback.
//
// One row of pixels of one channel is the unit of work: all taps of the row are added to it while
// it stays in the cache. A tap touches a rectangle, images × columns, walked with the longer run of
// adjacent elements inside. Each thread owns whole channels, so the number of threads does not
// change a single bit.
#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels.h"

namespace isoflop {
namespace {

// One dimension of the rectangle that a tap touches: a[i * a_stride] meets b[i * b_stride].
struct Axis {
  int64_t count, a_stride, b_stride;
};

struct Rectangle {
  Axis outer, inner;
  Rectangle(Axis first, Axis second) : outer(first), inner(second) {
    if (inner.count == 1 || (outer.count > 1 && outer.a_stride < inner.a_stride)) {
      std::swap(outer, inner);
    }
  }
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The outputs whose tap, `shift` inputs away from the start, lies inside `in` inputs.
struct Range {
  int64_t begin, end;
  Range(int64_t in, int64_t out, int64_t stride, int64_t shift)
      : begin(shift < 0 ? std::min(out, ceil_div(-shift, stride)) : 0),
        end(shift < in ? std::min(out, (in - shift - 1) / stride + 1) : 0) {}
  bool empty() const { return begin >= end; }
  int64_t size() const { return end - begin; }
};

// a += v * b
void axpy(Axis axis, float v, const float* b, float* a) {
  if (axis.a_stride == 1 && axis.b_stride == 1) {
#pragma omp simd
    for (int64_t i = 0; i < axis.count; ++i) a[i] += v * b[i];
  } else {
    for (int64_t i = 0; i < axis.count; ++i) a[i * axis.a_stride] += v * b[i * axis.b_stride];
  }
}

void axpy(const Rectangle& r, float v, const float* b, float* a) {
  for (int64_t i = 0; i < r.outer.count; ++i) {
    axpy(r.inner, v, b + i * r.outer.b_stride, a + i * r.outer.a_stride);
  }
}

float dot(Axis axis, const float* b, const float* a) {
  float sum = 0;
  if (axis.a_stride == 1 && axis.b_stride == 1) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < axis.count; ++i) sum += a[i] * b[i];
  } else {
    for (int64_t i = 0; i < axis.count; ++i) sum += a[i * axis.a_stride] * b[i * axis.b_stride];
  }
  return sum;
}

float dot(const Rectangle& r, const float* b, const float* a) {
  float sum = 0;
  for (int64_t i = 0; i < r.outer.count; ++i) {
    sum += dot(r.inner, b + i * r.outer.b_stride, a + i * r.outer.a_stride);
  }
  return sum;
}

float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return x < 0 ? 0 : x;  // keeps NaN
    case Activation::gelu:
      return 0.5f * x * (1 + std::erf(x * 0.70710678f));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

// Sets the row of channel c at height y to zero.
void clear_row(const View& a, const Geometry& g, int64_t c, int64_t y, int64_t width) {
  for (int64_t n = 0; n < g.n; ++n) {
    for (int64_t x = 0; x < width; ++x) a.data[n * a.n + c * a.c + y * a.h + x * a.w] = 0;
  }
}

void finish_row(const View& a, const Geometry& g, const Epilogue& e, int64_t c, int64_t y) {
  const float bias = e.bias ? e.bias[c] : 0;
  const View& r = e.residual;
  for (int64_t n = 0; n < g.n; ++n) {
    for (int64_t x = 0; x < g.ow; ++x) {
      float* sum = a.data + n * a.n + c * a.c + y * a.h + x * a.w;
      const float more = r.data ? r.data[n * r.n + c * r.c + y * r.h + x * r.w] : 0;
      *sum = activate(*sum + bias + more, e.activation);
    }
  }
}

struct Blocks {
  int64_t in, out;                // channels of a group
  int64_t blocks_in, blocks_out;  // tiles of a group
  int64_t row_groups;             // times that `rows` outputs of a group share entries
  int64_t taps;
  Blocks(const Geometry& g, const Index& index)
      : in(g.in / g.groups),
        out(g.out / g.groups),
        blocks_in(ceil_div(in, index.block_in)),
        blocks_out(ceil_div(out, index.block_out)),
        row_groups(out / index.rows),
        taps(g.kh * g.kw) {}
};

// Calls visit(entry, input channel, ky, kx) for the entries of a group of rows, in their order.
template <class Visit>
void visit_row(const Geometry& g, const Index& index, const Blocks& b, int64_t row_group,
               const Visit& visit) {
  const int64_t group = row_group / b.row_groups, row = row_group % b.row_groups;
  for (int64_t block = 0; block < b.blocks_in; ++block) {
    const int32_t* start = index.starts + (group * b.blocks_in + block) * b.row_groups + row;
    const int64_t channel = group * b.in + block * index.block_in;
    for (int64_t entry = start[0]; entry < start[1]; ++entry) {
      const int64_t offset = index.offsets[entry], tap = offset % b.taps;
      visit(entry, channel + offset / b.taps, tap / g.kw, tap % g.kw);
    }
  }
}

// Calls visit(entry, first output channel, ky, kx) for the entries of an input channel.
template <class Visit>
void visit_column(const Geometry& g, const Index& index, const Blocks& b, int64_t channel,
                  const Visit& visit) {
  const int64_t group = channel / b.in, column = channel % b.in;
  const int64_t block_in = column / index.block_in;
  for (int64_t block = 0; block < b.blocks_out; ++block) {
    const int32_t* start = index.t_starts + (group * b.blocks_out + block) * b.in + column;
    const int64_t first = block * index.block_out;
    const int64_t tile =
        index.starts[(group * b.blocks_in + block_in) * b.row_groups + first / index.rows];
    for (int64_t k = start[0]; k < start[1]; ++k) {
      const int64_t offset = index.t_entries[k] >> 16, tap = offset % b.taps;
      visit(tile + (index.t_entries[k] & 0xffff), group * b.out + first + offset / b.taps,
            tap / g.kw, tap % g.kw);
    }
  }
}

// What tap (ky, kx) reads for row oy of the outputs.
struct Tap {
  int64_t iy;     // row of the inputs
  Range columns;  // outputs whose input is not padding
  int64_t ix;     // input of the first of them
  Tap(const Geometry& g, int64_t oy, int64_t ky, int64_t kx)
      : iy(oy * g.stride_h - g.pad_h + ky * g.dilation_h),
        columns(g.w, g.ow, g.stride_w, kx * g.dilation_w - g.pad_w),
        ix(columns.begin * g.stride_w + kx * g.dilation_w - g.pad_w) {}
  bool inside(const Geometry& g) const { return iy >= 0 && iy < g.h && !columns.empty(); }
};

void forward(const Geometry& g, const Index& index, const float* values, const View& x,
             const View& y, const Epilogue& epilogue, int threads) {
  const Blocks blocks(g, index);
  const int rows = index.rows;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row_group = 0; row_group < g.groups * blocks.row_groups; ++row_group) {
    const int64_t first = row_group * rows;
    for (int64_t oy = 0; oy < g.oh; ++oy) {
      for (int r = 0; r < rows; ++r) clear_row(y, g, first + r, oy, g.ow);
      visit_row(g, index, blocks, row_group, [&](int64_t entry, int64_t c, int64_t ky, int64_t kx) {
        const Tap tap(g, oy, ky, kx);
        if (!tap.inside(g)) return;
        const Rectangle pixels({g.n, y.n, x.n}, {tap.columns.size(), y.w, x.w * g.stride_w});
        const float* in = x.data + c * x.c + tap.iy * x.h + tap.ix * x.w;
        float* out = y.data + first * y.c + oy * y.h + tap.columns.begin * y.w;
        for (int r = 0; r < rows; ++r) axpy(pixels, values[entry * rows + r], in, out + r * y.c);
      });
      for (int r = 0; r < rows; ++r) finish_row(y, g, epilogue, first + r, oy);
    }
  }
}

void input_gradient(const Geometry& g, const Index& index, const float* values, const View& dy,
                    const View& dx, int threads) {
  const Blocks blocks(g, index);
  const int rows = index.rows;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t c = 0; c < g.in; ++c) {
    for (int64_t iy = 0; iy < g.h; ++iy) {
      clear_row(dx, g, c, iy, g.w);
      visit_column(g, index, blocks, c, [&](int64_t entry, int64_t o, int64_t ky, int64_t kx) {
        const int64_t above = iy + g.pad_h - ky * g.dilation_h;
        if (above < 0 || above % g.stride_h || above / g.stride_h >= g.oh) return;
        const int64_t oy = above / g.stride_h;
        const Tap tap(g, oy, ky, kx);
        if (!tap.inside(g)) return;
        const Rectangle pixels({g.n, dx.n, dy.n}, {tap.columns.size(), dx.w * g.stride_w, dy.w});
        const float* out = dy.data + o * dy.c + oy * dy.h + tap.columns.begin * dy.w;
        float* in = dx.data + c * dx.c + iy * dx.h + tap.ix * dx.w;
        for (int r = 0; r < rows; ++r) axpy(pixels, values[entry * rows + r], out + r * dy.c, in);
      });
    }
  }
}

void weight_gradient(const Geometry& g, const Index& index, const View& x, const View& dy,
                     float* dvalues, int threads) {
  const Blocks blocks(g, index);
  const int rows = index.rows;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row_group = 0; row_group < g.groups * blocks.row_groups; ++row_group) {
    const int64_t first = row_group * rows;
    visit_row(g, index, blocks, row_group, [&](int64_t entry, int64_t, int64_t, int64_t) {
      std::fill_n(dvalues + entry * rows, rows, 0.0f);
    });
    for (int64_t oy = 0; oy < g.oh; ++oy) {
      visit_row(g, index, blocks, row_group, [&](int64_t entry, int64_t c, int64_t ky, int64_t kx) {
        const Tap tap(g, oy, ky, kx);
        if (!tap.inside(g)) return;
        const Rectangle pixels({g.n, dy.n, x.n}, {tap.columns.size(), dy.w, x.w * g.stride_w});
        const float* in = x.data + c * x.c + tap.iy * x.h + tap.ix * x.w;
        const float* out = dy.data + first * dy.c + oy * dy.h + tap.columns.begin * dy.w;
        for (int r = 0; r < rows; ++r) dvalues[entry * rows + r] += dot(pixels, in, out + r * dy.c);
      });
    }
  }
}

void normalize(int64_t channels, int64_t length, const float* x, const float* weight,
               const float* bias, float eps, float* y, float* mean, float* variance, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t c = 0; c < channels; ++c) {
    const float* row = x + c * length;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < length; ++i) sum += row[i];
    mean[c] = static_cast<float>(sum / static_cast<double>(length));
    for (int64_t i = 0; i < length; ++i) {
      const double distance = row[i] - mean[c];
      squares += distance * distance;
    }
    variance[c] = static_cast<float>(squares / static_cast<double>(length));
    const float factor = (weight ? weight[c] : 1.0f) / std::sqrt(variance[c] + eps);
    const float shift = bias ? bias[c] : 0.0f;
    for (int64_t i = 0; i < length; ++i) y[c * length + i] = (row[i] - mean[c]) * factor + shift;
  }
}

void normalize_gradient(int64_t channels, int64_t length, const float* x, const float* dy,
                        const float* weight, const float* mean, const float* variance, float eps,
                        float* dx, float* dweight, float* dbias, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t c = 0; c < channels; ++c) {
    const float *row = x + c * length, *gradient = dy + c * length;
    const double inverse = 1 / std::sqrt(static_cast<double>(variance[c]) + eps);
    double sum = 0, product = 0;
    for (int64_t i = 0; i < length; ++i) {
      sum += gradient[i];
      product += static_cast<double>(gradient[i]) * (row[i] - mean[c]);
    }
    dbias[c] = static_cast<float>(sum);
    dweight[c] = static_cast<float>(product * inverse);
    const double factor = (weight ? weight[c] : 1.0) * inverse;
    const double even = sum / static_cast<double>(length);
    const double slope = product * inverse * inverse / static_cast<double>(length);
    for (int64_t i = 0; i < length; ++i) {
      const double distance = row[i] - mean[c];
      dx[c * length + i] = static_cast<float>((gradient[i] - even - distance * slope) * factor);
    }
  }
}

}  // namespace

const Kernels portable = {
    "portable", [] { return true; }, {forward, input_gradient, weight_gradient}, nullptr, nullptr,
    normalize,  normalize_gradient,
};

}  // namespace isoflop
