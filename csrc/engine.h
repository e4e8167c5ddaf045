// The kernels, for vectors of LANES floats. See kernels.h for what they compute.
//
// The lanes of a vector are images (or rows, for a linear layer). A task is a tile of pixels of the
// output, for one group of LANES images. The part of the input that it needs is packed, one block
// of channels after the other, into a buffer that stays in the first level of the cache while the
// non-zeros of all outputs use it; the sums of all outputs stay in the second level. A stream lists
// the non-zeros in this order, each with its value and the distance of its first vector from the
// start of the packed block, so that the inner loops are the same for every geometry.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#else
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
#endif

#include <algorithm>

#include "epilogue.h"
#include "memory.h"
#include "pairs.h"
#include "problem.h"
#include "small_batch.h"

namespace {

// Of the input, in the first level of the cache. Where few products follow each sum that is
// fetched, it may be a little larger than that level: fewer passes fetch the sums less often.
constexpr int64_t packed_bytes(double density) { return (density < 0.15 ? 42 : 32) << 10; }
constexpr int64_t sums_bytes = 896 << 10;  // of the outputs, or their gradients, in the second

// Times in those of an FMA: what it takes to fetch and keep a vector of sums, and what listing an
// entry takes more than where the index has the stream.
constexpr double per_sum = 2.4, per_listed = 8;

// Vectors of an output from which on pairs save more than listing them takes.
constexpr double least_of_pairs = LANES == 16 ? 96 : 256;

template <class Number>
struct Choice {
  const Shape<Number>* shape;  // null if no tile can be packed
  Tile tile;
};

// The tile that should take the least time, in FMAs per useful one. `per_entry` and `sum_cost` are
// what an entry, and a vector of sums in a pass, cost besides.
template <class Number, class Has>
inline Choice<Number> choose_tile(const Problem& p, double density, int taps, int block,
                                  double per_entry, double sum_cost, Has has) {
  Choice<Number> best{};
  constexpr int64_t bytes = sizeof(Number);
  const int64_t most_bytes = packed_bytes(density);
  double least = 0;
  int used = 0;
  for (int k = 0; k < taps; k++) used += p.tap[k].plane >= 0;
  auto consider = [&](const Shape<Number>& shape, bool pixel_lanes) {
    const Tile t = make_tile(p, shape.h, shape.w, per_float<Number>, pixel_lanes);
    if (t.channel * minimum<int64_t>(block, p.channels) > most_distance) return;
    // Where a phase reads no tap, nothing is packed.
    const int64_t bytes_of_block = maximum<int64_t>(bytes * t.channel * block, 1);
    const int64_t blocks = maximum<int64_t>(most_bytes / bytes_of_block, 1);
    const double channels = static_cast<double>(minimum(blocks * block, p.channels));
    double entries = maximum(density * used * channels, 0.1);
    double computed = static_cast<double>(t.tasks) * static_cast<double>(t.length());
    double useful = static_cast<double>(p.n) * p.out_h * p.out_w;
    double packing = 2.0 * t.channel / LANES / (density * used * p.rows * t.vectors() + 0.1);
    const int64_t held = bytes * t.channel * minimum<int64_t>(block, p.channels);
    double over = maximum(static_cast<double>(held) / most_bytes, 1.0);
    double cost = 1 + sum_cost / entries + per_entry / t.vectors() + packing;
    cost *= computed / useful * over;
    if (!best.shape || cost < least) {
      best = {&shape, t};
      least = cost;
    }
  };
  for (const Shape<Number>& shape : Loops<Number>::shapes) {
    if (!has(shape)) continue;
    consider(shape, false);
    if (shape.h == 1 && p.n % (LANES * per_float<Number>) && p.out_h * p.out_w > 1)
      consider(shape, true);
  }
  return best;
}

struct Plan {
  Tile tile;
  int taps;
  int64_t merge;   // blocks of the index in a pass
  int64_t chunk;   // row groups whose sums (or gradients) are held at a time
  int64_t chunks;  // of a group
  int64_t packed;  // numbers of the packed input, rounded up to whole pages
};

// Blocks of the index that can be packed together.
template <class Number>
inline int64_t most_merged(const Problem& p, const Tile& tile, int64_t block, double density) {
  const int64_t size = sizeof(Number), bytes = maximum<int64_t>(1, size * tile.channel * block);
  return minimum(maximum<int64_t>(1, packed_bytes(density) / bytes), ceil_div(p.channels, block));
}

template <class Number>
inline Plan make_plan(const Problem& p, const Tile& tile, int taps, int64_t block, int64_t merge,
                      Stream<Number>& s) {
  s.channels = merge * block;
  s.passes = ceil_div(ceil_div(p.channels, block), merge);
  s.row_groups = ceil_div(p.rows, rows_of(s.grouping));
  Plan plan{tile, taps, merge, 0, 0, whole_pages(s.channels * tile.channel)};
  const int64_t bytes = 4 * tile.length() * rows_of(s.grouping);
  plan.chunk = minimum(maximum<int64_t>(1, sums_bytes / bytes), s.row_groups);
  plan.chunks = ceil_div(s.row_groups, plan.chunk);
  return plan;
}

// Whether a stream whose passes are blocks of the index is in the index.
template <class Number, class Source>
bool indexed(const Problem& p, const Source& source, Grouping grouping, int taps) {
  if (grouping == Grouping::pair || !source.has_stream()) return false;
  if (per_float<Number> > 1 && source.values) return false;
  for (int k = 0; k < taps; k++)
    if (p.tap[k].plane < 0) return false;
  return true;
}

// Makes the stream of `nnz` values, of which only the places matter where the source has none.
template <class Source, class Number>
void list(const Problem& p, const Plan& plan, const Source& source, int64_t nnz, Stream<Number>& s,
          int threads) {
  Memory& m = memory();
  const int64_t offsets = s.channels * plan.taps;
  int32_t* table = reserve<int32_t>(m.table, Pair::length_of(offsets));
  fill_distances(p, plan.tile, plan.taps, s.channels, table);
  std::fill(table + offsets, table + Pair::length_of(offsets), -1);
  const int64_t passes = p.groups * s.passes;
  if (plan.merge == 1 && indexed<Number>(p, source, s.grouping, plan.taps)) {
    uint16_t* distance = reserve<uint16_t>(m.distance, nnz);
    float* values = Source::moves_values ? reserve<float>(m.values, nnz) : nullptr;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t k = 0; k < passes; k++) source.write_block(k, table, distance, values);
    s.starts = source.starts();
    s.starts_step = s.row_groups;
    s.distance = distance;
    if constexpr (per_float<Number> == 1) s.values = values ? values : source.values;
    return;
  }
  s.starts_step = s.starts_length();
  if (per_float<Number> > 1) nnz += s.most_added(passes) * rows_of(s.grouping);
  const Lists<Number> to{reserve<int32_t>(m.starts, passes * s.starts_step),
                         reserve<uint16_t>(m.distance, nnz),
                         source.values ? reserve<Number>(m.values, nnz) : nullptr};
  s.starts = to.starts;
  s.distance = to.distance;
  s.values = to.values;
  if constexpr (Loops<Number>::pairs) {
    if (s.grouping == Grouping::pair) {
      const int64_t own = Pair::floats(offsets);
      float* pairs = reserve<float>(m.threads, own * threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
      for (int64_t k = 0; k < passes; k++)
        list_pairs(source, s, to, table, plan.taps, p.rows, k / s.passes, k % s.passes, plan.merge,
                   Pair(offsets, pairs + own * omp_get_thread_num()));
      return;
    }
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t k = 0; k < passes; k++)
    list_rows(source, s, to, table, plan.taps, k / s.passes, k % s.passes, plan.merge);
}

// Packs all channels of all tiles of a pointwise problem, if that takes a transposition, which is
// better done once than once for each part of the outputs. Returns null if it does not.
template <class Number>
inline const Number* pack_panels(const Problem& p, const Tile& t, const View& view, int64_t step_h,
                                 int64_t step_w, int64_t channels, Buffer& buffer, int threads) {
  if (!t.pointwise || view.n == 1) return nullptr;
  const int64_t length = t.length();
  Number* panels = reserve<Number>(buffer, t.tasks * channels * length);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t task = 0; task < t.tasks; task++) {
    Spot spots[most_vectors];
    pointwise_spots(p, t, place(t, task), view, step_h, step_w, spots);
    pack_pixels(view, spots, t.vectors(), 0, channels, panels + task * channels * length, length);
  }
  return panels;
}

template <class Number>
inline const Number* pack_inputs(const Problem& p, const Tile& t, int threads) {
  return pack_panels<Number>(p, t, p.in, p.plane[0].step_h, p.plane[0].step_w,
                             p.groups * p.channels, memory().input_panels, threads);
}

// The packed input of a pass of a tile, in `patch` if it is not in `panels`.
template <class Number>
inline const Number* packed_input(const Problem& p, const Tile& t, const Stream<Number>& s,
                                  const Number* panels, int64_t tile, const Spot* spots,
                                  int64_t group, int64_t pass, Number* patch) {
  const int64_t skipped = pass * s.channels, first = group * p.channels + skipped;
  const int64_t channels = minimum(s.channels, p.channels - skipped);
  if (panels) return panels + (tile * p.groups * p.channels + first) * t.channel;
  if (t.pixel_lanes)
    pack_pixel_lanes(p, t, place(t, tile), first, channels, patch);
  else
    pack(p, t, spots, first, channels, s.channels, patch);
  return patch;
}

inline double density_of(const Problem& p, int64_t nnz, int taps) {
  return static_cast<double>(nnz) / (static_cast<double>(p.groups) * p.rows * p.channels * taps);
}

// out = sum of values * in, then the epilogue. Every output is computed by one thread, in one
// order. Returns false, and does nothing, if the kernel is too large to be packed.
template <class Number, class Source>
bool multiply(const Problem& p, const Source& source, int64_t nnz, int rows, int taps,
              const Epilogue& epilogue, int threads) {
  if (p.n == 0 || p.out_h <= 0 || p.out_w <= 0) return true;
  Memory& m = memory();
  const double density = density_of(p, nnz, taps);
  const double vectors = static_cast<double>(p.out_h) * p.out_w * p.n / LANES;
  Stream<Number> s{};
  if (rows == 4)
    s.grouping = Grouping::block;
  else if (Loops<Number>::pairs && density > 0.15 && p.rows > 1 && vectors >= least_of_pairs)
    s.grouping = Grouping::pair;
  const auto choice = choose_tile<Number>(
      p, density, taps, source.block(), 0.65, per_sum,
      [&](const Shape<Number>& x) { return rows_loop(x, s.grouping) != nullptr; });
  if (!choice.shape) return false;
  const Tile& t = choice.tile;
  int64_t merge = most_merged<Number>(p, t, source.block(), density);
  if (indexed<Number>(p, source, s.grouping, taps)) {
    // With few vectors to share it, listing an entry costs more than longer passes save.
    const double saved = per_sum * (1 - 1.0 / merge) / (density * taps * source.block());
    if (per_listed / vectors > saved) merge = 1;
  }
  Plan plan = make_plan(p, t, taps, source.block(), merge, s);
  // Enough tasks for all threads.
  const int64_t wanted = ceil_div(int64_t{4} * threads, t.tasks * p.groups);
  plan.chunk = minimum(plan.chunk, maximum<int64_t>(ceil_div(s.row_groups, wanted), 32));
  plan.chunks = ceil_div(s.row_groups, plan.chunk);
  list(p, plan, source, nnz, s, threads);

  const Number* panels = pack_inputs<Number>(p, t, threads);
  const int group_rows = rows_of(s.grouping);
  const int64_t spots_length = t.packed_vectors();
  const int64_t packed_floats = plan.packed / per_float<Number>;
  const int64_t own = packed_floats + whole_pages(plan.chunk * group_rows * t.length());
  float* buffers = reserve<float>(m.threads, own * threads);
  Spot* all_spots = reserve<Spot>(m.spots, spots_length * threads);
  const Rows<Number> loop = rows_loop(*choice.shape, s.grouping);
  const int64_t tasks = t.tasks * p.groups * plan.chunks;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t task = 0; task < tasks; task++) {
    float* const buffer = buffers + own * omp_get_thread_num();
    Number* patch = reinterpret_cast<Number*>(buffer);
    float* sums = buffer + packed_floats;
    Spot* spots = all_spots + spots_length * omp_get_thread_num();
    const int64_t chunk = task % plan.chunks, group = task / plan.chunks % p.groups;
    const int64_t tile = task / plan.chunks / p.groups;
    const Place at = place(t, tile);
    const int64_t begin = chunk * plan.chunk;
    const int64_t end = minimum(begin + plan.chunk, s.row_groups);
    if (!panels && !t.pixel_lanes) input_spots(p, t, at, spots);
    for (int64_t pass = 0; pass < s.passes; pass++)
      loop(s, s.starts_of(group, pass), begin, end,
           packed_input(p, t, s, panels, tile, spots, group, pass, patch), t.stride, sums,
           pass == 0);
    const int64_t row = begin * group_rows;
    store_rows<Number>(p, t, at, group * p.rows + row, minimum(end * group_rows, p.rows) - row,
                       sums, epilogue);
  }
  return true;
}

struct Taps {
  int count;
  Plane* planes;
  Tap* taps;

  explicit Taps(const Geometry& g)
      : count(static_cast<int>(g.kh * g.kw)),
        planes(reserve<Plane>(memory().planes, count)),
        taps(reserve<Tap>(memory().taps, count)) {}
};

inline void prefer_huge_pages(const View& v, int64_t n, int64_t c, int64_t h, int64_t w) {
  if (n && c && h && w)
    prefer_huge_pages(v.data, (n - 1) * v.n + (c - 1) * v.c + (h - 1) * v.h + (w - 1) * v.w + 1);
}

template <class Number>
void forward(const Geometry& geometry, const Index& index, const float* values, const View& x,
             const View& y, const Epilogue& epilogue, int threads) {
  View in = x, out = y;
  Geometry g = geometry;
  prefer_huge_pages(out, g.n, g.out, g.oh, g.ow);
  if (!epilogue.residual.data) g = with_pixels_as_images(geometry, in, out);
  const Taps k(g);
  const Problem p = forward_problem(g, in, out, k.planes, k.taps);
#if LANES == 16
  if (is_small_batch(p, index, k.count))
    return multiply_small_batch<Number>(p, index, values, epilogue, threads);
#endif
  if (!multiply<Number>(p, ByRow(index, values, p.rows, p.channels), index.entries * index.rows,
                        index.rows, k.count, epilogue, threads))
    isoflop::portable.float32.forward(geometry, index, values, x, y, epilogue, threads);
}

template <class Number>
void input_gradient(const Geometry& geometry, const Index& index, const float* values,
                    const View& dy, const View& dx, int threads) {
  View in = dy, out = dx;
  prefer_huge_pages(out, geometry.n, geometry.in, geometry.h, geometry.w);
  const Geometry g = with_pixels_as_images(geometry, in, out);
  const Taps k(g);
  for (int64_t phase_h = 0; phase_h < minimum(g.stride_h, g.h); phase_h++)
    for (int64_t phase_w = 0; phase_w < minimum(g.stride_w, g.w); phase_w++) {
      const Problem p = backward_problem(g, in, out, phase_h, phase_w, k.planes, k.taps);
      if (!multiply<Number>(p, ByColumn(index, values, k.count, p.channels, p.rows),
                            index.entries * index.rows, 1, k.count, Epilogue{}, threads))
        return isoflop::portable.float32.input_gradient(geometry, index, values, dy, dx, threads);
    }
}

template <class Number>
void weight_gradient(const Geometry& geometry, const Index& index, const View& x, const View& dy,
                     float* dvalues, int threads) {
  const int64_t nnz = index.entries * index.rows;
  if (nnz == 0) return;
  std::memset(dvalues, 0, nnz * sizeof(float));
  View in = x, out = dy;
  const Geometry g = with_pixels_as_images(geometry, in, out);
  const Taps k(g);
  const Problem p = forward_problem(g, in, out, k.planes, k.taps);
  if (p.n == 0 || p.out_h <= 0 || p.out_w <= 0) return;

  Memory& m = memory();
  Stream<Number> s{};
  s.grouping = index.rows == 4 ? Grouping::block : Grouping::single;
  const double density = density_of(p, nnz, k.count);
  const auto choice = choose_tile<Number>(
      p, density, k.count, index.block_in, 4, 0,
      [&](const Shape<Number>& x) { return products_loop(x, s.grouping) != nullptr; });
  if (!choice.shape)
    return isoflop::portable.float32.weight_gradient(geometry, index, x, dy, dvalues, threads);
  const Tile& t = choice.tile;
  // One block of the index in a pass, so that the entries keep its order.
  const Plan plan = make_plan(p, t, k.count, index.block_in, 1, s);
  list(p, plan, ByRow(index, nullptr, p.rows, p.channels), nnz, s, threads);

  const Number* panels = pack_inputs<Number>(p, t, threads);
  const Number* dy_panels =
      pack_panels<Number>(p, t, p.out, 1, 1, p.groups * p.rows, m.output_panels, threads);
  const int group_rows = rows_of(s.grouping);
  const int64_t own = plan.packed + plan.chunk * group_rows * t.length();
  Number* buffers = reserve<Number>(m.threads, own * threads);
  float* others = reserve<float>(m.gradients, nnz * (threads - 1));
  Spot* all_spots = reserve<Spot>(m.spots, t.packed_vectors() * threads);
  const Products<Number> loop = products_loop(*choice.shape, s.grouping);
#pragma omp parallel num_threads(threads)
  {
    const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
    float* sums = thread ? others + (thread - 1) * nnz : dvalues;
    if (thread) std::memset(sums, 0, nnz * sizeof(float));
    Number* patch = buffers + own * thread;
    Number* gradient = patch + plan.packed;
    Spot* spots = all_spots + thread * t.packed_vectors();
    for (int64_t tile = t.tasks * thread / team; tile < t.tasks * (thread + 1) / team; tile++) {
      const Place at = place(t, tile);
      Spot outputs[most_vectors];
      if (!panels && !t.pixel_lanes) input_spots(p, t, at, spots);
      if (!dy_panels && !t.pixel_lanes) output_spots(p, t, at, p.out, outputs);
      for (int64_t task = 0; task < p.groups * plan.chunks; task++) {
        const int64_t group = task / plan.chunks, begin = task % plan.chunks * plan.chunk;
        const int64_t end = minimum(begin + plan.chunk, s.row_groups);
        const int64_t first = group * p.rows + begin * group_rows;
        const int64_t rows = (end - begin) * group_rows;
        const Number* dy_tile = gradient;
        if (dy_panels)
          dy_tile = dy_panels + (tile * p.groups * p.rows + first) * t.length();
        else if (t.pixel_lanes)
          pack_output_lanes(p, t, at, p.out, first, rows, gradient);
        else
          pack_pixels(p.out, outputs, t.vectors(), first, rows, gradient, t.length());
        for (int64_t pass = 0; pass < s.passes; pass++)
          loop(s, s.starts_of(group, pass), begin, end,
               packed_input(p, t, s, panels, tile, spots, group, pass, patch), t.stride, dy_tile,
               sums);
      }
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t e = 0; e < nnz; e++)
      for (int64_t other = 1; other < team; other++) dvalues[e] += others[(other - 1) * nnz + e];
  }
}

template <class Number>
constexpr isoflop::Precision precision{forward<Number>, input_gradient<Number>,
                                       weight_gradient<Number>};

}  // namespace
