// Runs every kernel of every instruction set on random geometries against a float64 reference.
//
//   fuzz [CASES [SEED]]
//
// Buffers have exactly the size they need, so that an address sanitizer sees every step outside,
// and elements between those of a view must keep their value.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../registry.h"

namespace {

using namespace isoflop;

using Random = std::mt19937_64;

int64_t pick(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

float normal(Random& random) { return std::normal_distribution<float>()(random); }

// To the nearest bfloat16: 8 bits, even on a tie.
double rounded(double x) {
  if (x == 0) return x;
  const int power = std::ilogb(x) - 7;
  return std::ldexp(std::nearbyint(std::ldexp(x, -power)), power);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A weight by its non-zeros, in the order of an index, and the index.
struct Weight {
  struct Entry {
    int64_t row, channel, ky, kx;  // the first row, and the channel inside the group
  };
  std::vector<Entry> entries;
  std::vector<float> values;
  std::vector<uint16_t> offsets;
  std::vector<int32_t> starts, t_starts;
  std::vector<uint32_t> t_entries;
  Index index;

  Weight(Random& random, const Geometry& g, int rows) {
    const int64_t in = g.in / g.groups, out = g.out / g.groups, taps = g.kh * g.kw;
    const int block_in = static_cast<int>(pick(random, 1, in + 3));
    const int block_out = static_cast<int>(rows * pick(random, 1, out / rows + 3));
    const double density = std::uniform_real_distribution<>(0, 1)(random);
    std::bernoulli_distribution keep(pick(random, 0, 4) ? density : density > 0.5);
    struct Column {
      int64_t column, offset, within;
    };
    std::vector<Column> columns;
    starts.push_back(0);
    for (int64_t group = 0; group < g.groups; ++group) {
      for (int64_t block = 0; block < ceil_div(in, block_in); ++block) {
        int64_t tile = 0;
        for (int64_t row = 0; row < out; row += rows) {
          if (row % block_out == 0) tile = starts.back();
          for (int64_t offset = 0; offset < block_in * taps; ++offset) {
            const int64_t channel = block * block_in + offset / taps, tap = offset % taps;
            if (channel >= in || !keep(random)) continue;
            const int64_t blocks_out = ceil_div(out, block_out);
            columns.push_back({(group * blocks_out + row / block_out) * in + channel,
                               row % block_out * taps + tap,
                               static_cast<int64_t>(entries.size()) - tile});
            entries.push_back({group * out + row, channel, tap / g.kw, tap % g.kw});
            offsets.push_back(static_cast<uint16_t>(offset));
          }
          starts.push_back(static_cast<int32_t>(entries.size()));
        }
      }
    }
    std::sort(columns.begin(), columns.end(), [](const Column& a, const Column& b) {
      return std::make_pair(a.column, a.offset) < std::make_pair(b.column, b.offset);
    });
    t_starts.assign(static_cast<size_t>(g.groups * ceil_div(out, block_out) * in + 1), 0);
    for (const Column& c : columns) {
      t_entries.push_back(static_cast<uint32_t>(c.offset << 16 | c.within));
      ++t_starts[static_cast<size_t>(c.column + 1)];
    }
    for (size_t i = 1; i < t_starts.size(); ++i) t_starts[i] += t_starts[i - 1];
    for (size_t i = 0; i < entries.size() * static_cast<size_t>(rows); ++i) {
      values.push_back(normal(random));
    }
    // Vectors may keep room to spare, which would hide a step outside.
    for (auto* v : {&starts, &t_starts}) v->shrink_to_fit();
    values.shrink_to_fit(), offsets.shrink_to_fit(), t_entries.shrink_to_fit();
    index = {static_cast<int64_t>(entries.size()),
             rows,
             block_in,
             block_out,
             offsets.data(),
             starts.data(),
             t_entries.data(),
             t_starts.data()};
  }
};

// Activations in a random layout, with gaps between the elements or without.
struct Tensor {
  int64_t n, c, h, w;
  std::vector<float> data;
  View view;

  Tensor(Random& random, int64_t n, int64_t c, int64_t h, int64_t w) : n(n), c(c), h(h), w(w) {
    static const std::vector<std::string> layouts = {"chwn", "nchw", "nhwc", "cnhw", "whcn"};
    const std::string& layout = layouts[static_cast<size_t>(pick(random, 0, 4))];
    const bool gaps = pick(random, 0, 3) == 0;
    int64_t stride = gaps && pick(random, 0, 1) ? 2 : 1;
    for (size_t i = 4; i-- > 0;) {
      const char axis = layout[i];
      auto [count, slot] = axis == 'n'   ? std::make_pair(n, &view.n)
                           : axis == 'c' ? std::make_pair(c, &view.c)
                           : axis == 'h' ? std::make_pair(h, &view.h)
                                         : std::make_pair(w, &view.w);
      *slot = count == 1 ? 1 : stride;
      stride *= std::max<int64_t>(count, 1) + (gaps ? pick(random, 0, 3) : 0);
    }
    const int64_t last = n * c * h * w == 0 ? -1
                                            : (n - 1) * view.n + (c - 1) * view.c +
                                                  (h - 1) * view.h + (w - 1) * view.w;
    const int64_t start = gaps ? pick(random, 0, 3) : 0;
    data.resize(static_cast<size_t>(last + 1 + start));
    for (float& value : data) value = normal(random);
    view.data = data.data() + start;
  }

  // One number per element, by (n, c, h, w).
  template <class Visit>
  void visit(const Visit& visit) const {
    size_t flat = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < c; ++j)
        for (int64_t k = 0; k < h; ++k)
          for (int64_t l = 0; l < w; ++l) visit(flat++, at(i, j, k, l));
  }

  float& at(int64_t i, int64_t j, int64_t k, int64_t l) const {
    return view.data[i * view.n + j * view.c + k * view.h + l * view.w];
  }

  std::vector<float> elements() const {
    std::vector<float> all;
    visit([&](size_t, float& element) { all.push_back(element); });
    return all;
  }

  // The buffer with all elements of the view set to `value`, to see what lies between them.
  std::vector<float> between(float value) {
    const std::vector<float> kept = data;
    visit([&](size_t, float& element) { element = value; });
    std::vector<float> rest = data;
    std::copy(kept.begin(), kept.end(), data.begin());
    return rest;
  }
};

// A result and what it may be off by.
struct Sum {
  double value = 0, size = 0;
  int64_t terms = 0;
  void add(double term) { value += term, size += std::abs(term), ++terms; }
  double bound() const {
    return std::numeric_limits<float>::epsilon() * 1.2 * static_cast<double>(terms + 16) * size;
  }
};

double activate(double x, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

struct Case {
  Random random;
  Geometry g;
  int rows;

  static Geometry geometry(Random& random, int rows) {
    Geometry g{};
    const bool linear = pick(random, 0, 3) == 0;
    g.groups = linear ? 1 : pick(random, 0, 2) ? 1 : pick(random, 1, 4);
    g.in = g.groups * (pick(random, 0, 3) ? pick(random, 1, 20) : 1);
    g.out = g.groups * rows * (pick(random, 0, 3) ? pick(random, 1, 20 / rows) : 1);
    g.n = pick(random, 0, 3) ? pick(random, 0, 40) : pick(random, 0, 3);
    auto side = [&](int64_t& size, int64_t& out, int64_t& k, int64_t& stride, int64_t& pad,
                    int64_t& dilation) {
      k = linear ? 1 : pick(random, 1, 4);
      stride = linear ? 1 : pick(random, 1, 3);
      dilation = linear ? 1 : pick(random, 1, 3);
      pad = linear ? 0 : pick(random, 0, 4);
      const int64_t reach = dilation * (k - 1) + 1;
      size = linear ? 1 : std::max(pick(random, 1, 11), reach - 2 * pad);
      out = (size + 2 * pad - reach) / stride + 1;
    };
    side(g.h, g.oh, g.kh, g.stride_h, g.pad_h, g.dilation_h);
    side(g.w, g.ow, g.kw, g.stride_w, g.pad_w, g.dilation_w);
    return g;
  }

  explicit Case(uint64_t seed) : random(seed), g(), rows(pick(random, 0, 1) ? 4 : 1) {
    g = geometry(random, rows);
  }

  bool run(const std::string& name, const Precision& kernels, bool round, int threads) {
    const Weight weight(random, g, rows);
    const Tensor x(random, g.n, g.in, g.h, g.w), residual(random, g.n, g.out, g.oh, g.ow);
    Tensor y(random, g.n, g.out, g.oh, g.ow), dx(random, g.n, g.in, g.h, g.w);
    const Tensor dy(random, g.n, g.out, g.oh, g.ow);
    std::vector<float> bias(static_cast<size_t>(g.out)), dvalues(weight.values.size());
    for (float& value : bias) value = normal(random);
    Epilogue epilogue{pick(random, 0, 1) ? bias.data() : nullptr, residual.view,
                      static_cast<Activation>(pick(random, 0, 3))};
    if (pick(random, 0, 1)) epilogue.residual.data = nullptr;

    std::vector<Sum> ys(static_cast<size_t>(g.n * g.out * g.oh * g.ow)),
        dxs(static_cast<size_t>(g.n * g.in * g.h * g.w)), dvs(weight.values.size());
    reference(weight, x, dy, round, ys, dxs, dvs);
    residual.visit([&](size_t i, float& element) {
      const auto c = static_cast<size_t>(static_cast<int64_t>(i) / (g.oh * g.ow) % g.out);
      if (epilogue.bias) ys[i].add(bias[c]);
      if (epilogue.residual.data) ys[i].add(element);
      ys[i].value = activate(ys[i].value, epilogue.activation);
    });

    auto forward = [&] {
      kernels.forward(g, weight.index, weight.values.data(), x.view, y.view, epilogue, threads);
      return y.elements();
    };
    auto input_gradient = [&] {
      kernels.input_gradient(g, weight.index, weight.values.data(), dy.view, dx.view, threads);
      return dx.elements();
    };
    auto weight_gradient = [&] {
      kernels.weight_gradient(g, weight.index, x.view, dy.view, dvalues.data(), threads);
      return dvalues;
    };
    const auto y_between = y.between(0), dx_between = dx.between(0);
    bool good = check(name, "forward", threads, forward, ys);
    good &= check(name, "input_gradient", threads, input_gradient, dxs);
    good &= check(name, "weight_gradient", threads, weight_gradient, dvs);
    if (y.between(0) != y_between || dx.between(0) != dx_between) {
      good = report(name, "something", threads, "writes between the elements");
    }
    return good;
  }

  void reference(const Weight& weight, const Tensor& x, const Tensor& dy, bool round,
                 std::vector<Sum>& ys, std::vector<Sum>& dxs, std::vector<Sum>& dvs) const {
    auto factor = [=](double number) { return round ? rounded(number) : number; };
    const int64_t in = g.in / g.groups, out = g.out / g.groups;
    for (size_t k = 0; k < weight.values.size(); ++k) {
      const auto& entry = weight.entries[k / static_cast<size_t>(rows)];
      const int64_t o = entry.row + static_cast<int64_t>(k) % rows;
      const int64_t c = o / out * in + entry.channel;
      for (int64_t n = 0; n < g.n; ++n) {
        for (int64_t oy = 0; oy < g.oh; ++oy) {
          for (int64_t ox = 0; ox < g.ow; ++ox) {
            const int64_t iy = oy * g.stride_h - g.pad_h + entry.ky * g.dilation_h;
            const int64_t ix = ox * g.stride_w - g.pad_w + entry.kx * g.dilation_w;
            if (iy < 0 || iy >= g.h || ix < 0 || ix >= g.w) continue;
            const double a = factor(x.at(n, c, iy, ix)), b = factor(dy.at(n, o, oy, ox));
            const double v = factor(weight.values[k]);
            ys[static_cast<size_t>(((n * g.out + o) * g.oh + oy) * g.ow + ox)].add(v * a);
            dxs[static_cast<size_t>(((n * g.in + c) * g.h + iy) * g.w + ix)].add(v * b);
            dvs[k].add(a * b);
          }
        }
      }
    }
  }

  template <class Call>
  bool check(const std::string& name, const char* what, int threads, const Call& call,
             const std::vector<Sum>& expected) const {
    const std::vector<float> found = call();
    for (size_t i = 0; i < expected.size(); ++i) {
      if (!(std::abs(found[i] - expected[i].value) <= expected[i].bound())) {
        std::fprintf(stderr, "element %zu: %.9g, not %.9g\n", i, static_cast<double>(found[i]),
                     expected[i].value);
        return report(name, what, threads, "is wrong");
      }
    }
    const std::vector<float> again = call();
    if (!found.empty() && std::memcmp(found.data(), again.data(), found.size() * sizeof(float))) {
      return report(name, what, threads, "differs from run to run");
    }
    return true;
  }

  bool report(const std::string& name, const char* what, int threads, const char* how) const {
    std::fprintf(stderr,
                 "%s %s %s, threads %d: n %ld, groups %ld, in %ld, out %ld, h %ld, w %ld, kernel "
                 "%ld %ld, stride %ld %ld, padding %ld %ld, dilation %ld %ld, rows %d\n",
                 name.c_str(), what, how, threads, long(g.n), long(g.groups), long(g.in),
                 long(g.out), long(g.h), long(g.w), long(g.kh), long(g.kw), long(g.stride_h),
                 long(g.stride_w), long(g.pad_h), long(g.pad_w), long(g.dilation_h),
                 long(g.dilation_w), rows);
    return false;
  }
};

}  // namespace

int main(int argc, char** argv) {
  const long cases = argc > 1 ? std::atol(argv[1]) : 300;
  const long seed = argc > 2 ? std::atol(argv[2]) : 0;
  long bad = 0;
  for (const Kernels* kernels : compiled()) {
    if (!kernels->supported()) {
      std::printf("%s: not supported here\n", kernels->name);
      continue;
    }
    const bool halves = kernels->bfloat16 && kernels->supports_bfloat16();
    for (bool bfloat16 : {false, true}) {
      if (bfloat16 && !halves) continue;
      const Precision& precision = bfloat16 ? *kernels->bfloat16 : kernels->float32;
      const std::string name = std::string(kernels->name) + (bfloat16 ? ", bfloat16" : "");
      for (long i = 0; i < cases; ++i) {
        for (int threads : {1, 2, 3}) {
          if (!Case(static_cast<uint64_t>(seed + i)).run(name, precision, bfloat16, threads)) {
            std::fprintf(stderr, "seed %ld\n", seed + i);
            ++bad;
          }
        }
      }
      std::printf("%s: %ld cases\n", name.c_str(), cases);
    }
  }
  return bad ? EXIT_FAILURE : EXIT_SUCCESS;
}
