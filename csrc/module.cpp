// The Python module. Checks everything that the kernels trust, then calls them without the GIL.
//
// What an index says inside is checked once, when it is built or loaded (SparseIndex.check); here
// its lengths and ends are.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "registry.h"

namespace nb = nanobind;

namespace isoflop {
namespace {

using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using Output = nb::ndarray<nb::device::cpu>;
using Pair = std::array<int64_t, 2>;
using Sizes = std::array<int64_t, 4>;

constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxOffsets = 1 << 15;  // offsets in a block have 15 bits
constexpr int64_t kMaxTile = 1 << 16;     // positions in a tile have 16
constexpr int kMaxThreads = 4096;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void require(bool condition, const char* message) {
  if (!condition) refuse(message);
}

// ---- arrays

// What an array touches, to see whether two of them meet.
struct Extent {
  const char* name;
  uintptr_t begin, end;
  bool meets(const Extent& other) const { return begin < other.end && other.begin < end; }
};

template <class Array>
void check_type(const Array& array, const char* name, nb::dlpack::dtype type, size_t align) {
  if (array.dtype() != type) refuse(std::string(name) + " has the wrong type of numbers");
  if (reinterpret_cast<uintptr_t>(array.data()) % align) {
    refuse(std::string(name) + " is not aligned to its numbers");
  }
  if (array.size() && !array.data()) refuse(std::string(name) + " has no memory");
}

// One row of numbers without gaps.
template <class T>
struct Row {
  T* data;
  int64_t size;
  Extent extent;

  template <class Array>
  Row(const Array& array, const char* name, int64_t expected) {
    using Number = std::remove_const_t<T>;
    check_type(array, name, nb::dtype<Number>(), alignof(Number));
    if (array.ndim() != 1 || (array.shape(0) > 1 && array.stride(0) != 1)) {
      refuse(std::string(name) + " must be one row without gaps");
    }
    size = static_cast<int64_t>(array.shape(0));
    if (expected >= 0 && size != expected) {
      refuse(std::string(name) + " has " + std::to_string(size) + " numbers, not " +
             std::to_string(expected));
    }
    data = static_cast<T*>(const_cast<void*>(static_cast<const void*>(array.data())));
    const auto begin = reinterpret_cast<uintptr_t>(data);
    extent = {name, begin, begin + static_cast<uintptr_t>(size) * sizeof(T)};
  }
};

// Activations of shape (n, c, h, w) or, with h = w = 1, (n, c).
struct Activations {
  View view;
  Sizes sizes;
  Extent extent;

  template <class Array>
  Activations(const Array& array, const char* name) {
    check_type(array, name, nb::dtype<float>(), alignof(float));
    if (array.ndim() != 4 && array.ndim() != 2) {
      refuse(std::string(name) + " must have 4 dimensions, or 2");
    }
    Sizes strides;
    int64_t last = 0;
    for (size_t i = 0; i < 4; ++i) {
      const bool given = i < array.ndim();
      sizes[i] = given ? static_cast<int64_t>(array.shape(i)) : 1;
      // The stride of a dimension of one element means nothing.
      strides[i] = sizes[i] > 1 ? array.stride(i) : 1;
      if (sizes[i] > kMaxSize) refuse(std::string(name) + " has a size of 2^31 or more");
      if (strides[i] < 0) refuse(std::string(name) + " has a negative stride");
      int64_t step;
      if (sizes[i] > 1 && (__builtin_mul_overflow(sizes[i] - 1, strides[i], &step) ||
                           __builtin_add_overflow(last, step, &last))) {
        refuse(std::string(name) + " is larger than memory");
      }
    }
    if (last > std::numeric_limits<int64_t>::max() / 8) {
      refuse(std::string(name) + " is larger than memory");
    }
    // Kernels write to outputs only.
    auto* data = static_cast<float*>(const_cast<void*>(static_cast<const void*>(array.data())));
    view = {data, strides[0], strides[1], strides[2], strides[3]};
    const auto begin = reinterpret_cast<uintptr_t>(data);
    extent = {name, begin,
              begin + (empty() ? 0 : static_cast<uintptr_t>(last + 1) * sizeof(float))};
  }

  bool empty() const { return std::find(sizes.begin(), sizes.end(), 0) != sizes.end(); }

  // Whether no two elements share a place: each stride steps over all that the smaller ones reach.
  bool distinct() const {
    if (empty()) return true;
    std::array<Pair, 4> axes = {Pair{view.n, sizes[0]}, Pair{view.c, sizes[1]},
                                Pair{view.h, sizes[2]}, Pair{view.w, sizes[3]}};
    std::sort(axes.begin(), axes.end());
    int64_t reach = 0;
    for (const auto& [stride, size] : axes) {
      if (size <= 1) continue;
      if (stride <= reach) return false;
      reach += (size - 1) * stride;
    }
    return true;
  }
};

void check_output(const Extent& output, std::initializer_list<const Extent*> inputs) {
  for (const Extent* input : inputs) {
    if (output.meets(*input)) {
      refuse(std::string(output.name) + " shares memory with " + input->name);
    }
  }
}

// ---- geometry and index

struct Layer {
  Geometry geometry;
  Index index;
  int64_t nnz;

  Layer(const Sizes& x, const Sizes& y, int64_t groups, const Pair& kernel, const Pair& stride,
        const Pair& padding, const Pair& dilation, const std::array<int64_t, 3>& tiling,
        const std::array<Input, 4>& parts) {
    geometry = {x[0],       groups,     x[1],        y[1],       x[2],      x[3],
                y[2],       y[3],       kernel[0],   kernel[1],  stride[0], stride[1],
                padding[0], padding[1], dilation[0], dilation[1]};
    check_geometry(y[0]);
    index_of(tiling, parts);
  }

 private:
  static bool within(int64_t value, int64_t low) { return value >= low && value <= kMaxSize; }

  static bool fits(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t padding,
                   int64_t dilation) {
    if (!within(kernel, 1) || !within(stride, 1) || !within(padding, 0) || !within(dilation, 1)) {
      return false;
    }
    const int64_t room = in + 2 * padding - dilation * (kernel - 1) - 1;
    return in >= 1 && room >= 0 && out == room / stride + 1;
  }

  void check_geometry(int64_t images) const {
    const Geometry& g = geometry;
    require(g.n == images, "inputs and outputs have different numbers of images");
    require(within(g.groups, 1) && g.in >= 1 && g.out >= 1 && g.in % g.groups == 0 &&
                g.out % g.groups == 0,
            "the channels cannot be cut into the groups");
    require(fits(g.h, g.oh, g.kh, g.stride_h, g.pad_h, g.dilation_h) &&
                fits(g.w, g.ow, g.kw, g.stride_w, g.pad_w, g.dilation_w),
            "the sizes of inputs and outputs do not fit the kernel, stride, padding and dilation");
  }

  void index_of(const std::array<int64_t, 3>& tiling, const std::array<Input, 4>& parts) {
    const auto [rows, block_in, block_out] = tiling;
    const int64_t in = geometry.in / geometry.groups, out = geometry.out / geometry.groups;
    const int64_t limit = kMaxOffsets;
    require((rows == 1 || rows == 4) && out % rows == 0, "the index shares entries by 1 or 4 rows");
    require(geometry.kh <= limit && geometry.kw <= limit && block_in >= 1 && block_in <= limit &&
                block_out >= 1 && block_out <= limit && block_out % rows == 0,
            "the tiles of the index are too large");
    const int64_t taps = geometry.kh * geometry.kw;
    require(taps <= limit && std::max(block_in, block_out) * taps <= kMaxOffsets &&
                block_in * block_out * taps <= kMaxTile,
            "the tiles of the index are too large");
    const int64_t segments = geometry.groups * ((in + block_in - 1) / block_in) * (out / rows);
    const int64_t columns = geometry.groups * ((out + block_out - 1) / block_out) * in;
    const Row<const int16_t> offsets(parts[0], "offsets", -1);
    const Row<const int32_t> starts(parts[1], "starts", segments + 1);
    const Row<const int32_t> t_entries(parts[2], "t_entries", offsets.size);
    const Row<const int32_t> t_starts(parts[3], "t_starts", columns + 1);
    require(offsets.size <= kMaxSize, "the index has 2^31 entries or more");
    for (const auto* ends : {&starts, &t_starts}) {
      require(ends->data[0] == 0 && ends->data[ends->size - 1] == offsets.size,
              "the index is damaged");
    }
    nnz = offsets.size * rows;
    // The bits of offsets and entries are unsigned; PyTorch's integers are not.
    index = {offsets.size,
             static_cast<int>(rows),
             static_cast<int>(block_in),
             static_cast<int>(block_out),
             reinterpret_cast<const uint16_t*>(offsets.data),
             starts.data,
             reinterpret_cast<const uint32_t*>(t_entries.data),
             t_starts.data};
  }
};

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "silu") return Activation::silu;
  refuse("unknown activation '" + name + "'; there are none, relu, gelu and silu");
}

void check_threads(int threads) {
  require(threads >= 1 && threads <= kMaxThreads, "the number of threads must be in 1 … 4096");
}

// ---- instruction sets

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> all = compiled();
  all.erase(std::remove_if(all.begin(), all.end(), [](auto* k) { return !k->supported(); }),
            all.end());
  return all;
}

std::atomic<const Kernels*> current{nullptr};

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : supported()) names.emplace_back(kernels->name);
  return names;
}

void set_isa(const std::string& name) {
  std::string known;
  for (const Kernels* kernels : supported()) {
    if (kernels->name == name) {
      current = kernels;
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(kernels->name);
  }
  refuse("this machine has no kernels for '" + name + "'; it has " + known);
}

bool has_bfloat16() {
  const Kernels& kernels = *current.load();
  return kernels.bfloat16 && kernels.supports_bfloat16();
}

const Precision& precision_of(bool bfloat16) {
  require(!bfloat16 || has_bfloat16(), "this processor has no products of bfloat16");
  return bfloat16 ? *current.load()->bfloat16 : current.load()->float32;
}

// ---- entry points

void forward(const Input& x_array, const Input& values_array, const std::array<Input, 4>& parts,
             const std::array<int64_t, 3>& tiling, int64_t groups, const Pair& kernel,
             const Pair& stride, const Pair& padding, const Pair& dilation, const Output& y_array,
             const std::optional<Input>& bias_array, const std::optional<Input>& residual_array,
             const std::string& activation, bool bfloat16, int threads) {
  const Activations x(x_array, "x"), y(y_array, "y");
  const Layer layer(x.sizes, y.sizes, groups, kernel, stride, padding, dilation, tiling, parts);
  const Row<const float> values(values_array, "values", layer.nnz);
  require(y.distinct(), "elements of y share memory");
  check_output(y.extent, {&x.extent, &values.extent});
  Epilogue epilogue{nullptr, {}, activation_of(activation)};
  if (bias_array) {
    const Row<const float> bias(*bias_array, "bias", layer.geometry.out);
    check_output(y.extent, {&bias.extent});
    epilogue.bias = bias.data;
  }
  if (residual_array) {
    const Activations residual(*residual_array, "residual");
    require(residual.sizes == y.sizes, "the residual has another shape than the output");
    check_output(y.extent, {&residual.extent});
    epilogue.residual = residual.view;
  }
  check_threads(threads);
  if (y.empty()) return;
  const Precision& kernels = precision_of(bfloat16);
  nb::gil_scoped_release release;
  kernels.forward(layer.geometry, layer.index, values.data, x.view, y.view, epilogue, threads);
}

void input_gradient(const Input& dy_array, const Input& values_array,
                    const std::array<Input, 4>& parts, const std::array<int64_t, 3>& tiling,
                    int64_t groups, const Pair& kernel, const Pair& stride, const Pair& padding,
                    const Pair& dilation, const Output& dx_array, bool bfloat16, int threads) {
  const Activations dy(dy_array, "dy"), dx(dx_array, "dx");
  const Layer layer(dx.sizes, dy.sizes, groups, kernel, stride, padding, dilation, tiling, parts);
  const Row<const float> values(values_array, "values", layer.nnz);
  require(dx.distinct(), "elements of dx share memory");
  check_output(dx.extent, {&dy.extent, &values.extent});
  check_threads(threads);
  if (dx.empty()) return;
  const Precision& kernels = precision_of(bfloat16);
  nb::gil_scoped_release release;
  kernels.input_gradient(layer.geometry, layer.index, values.data, dy.view, dx.view, threads);
}

void weight_gradient(const Input& x_array, const Input& dy_array, const std::array<Input, 4>& parts,
                     const std::array<int64_t, 3>& tiling, int64_t groups, const Pair& kernel,
                     const Pair& stride, const Pair& padding, const Pair& dilation,
                     const Output& dvalues_array, bool bfloat16, int threads) {
  const Activations x(x_array, "x"), dy(dy_array, "dy");
  const Layer layer(x.sizes, dy.sizes, groups, kernel, stride, padding, dilation, tiling, parts);
  const Row<float> dvalues(dvalues_array, "dvalues", layer.nnz);
  check_output(dvalues.extent, {&x.extent, &dy.extent});
  check_threads(threads);
  if (x.empty()) {
    std::fill_n(dvalues.data, dvalues.size, 0.0f);
    return;
  }
  const Precision& kernels = precision_of(bfloat16);
  nb::gil_scoped_release release;
  kernels.weight_gradient(layer.geometry, layer.index, x.view, dy.view, dvalues.data, threads);
}

// Channels in rows: the batch innermost, nothing between the elements.
struct Rows {
  float* data;
  int64_t channels, length;
  Extent extent;

  template <class Array>
  Rows(const Array& array, const char* name) {
    const Activations a(array, name);
    const auto [n, c, h, w] = a.sizes;
    const View& v = a.view;
    if (!a.empty() && ((n > 1 && v.n != 1) || (w > 1 && v.w != n) || (h > 1 && v.h != w * n) ||
                       (c > 1 && v.c != h * w * n))) {
      refuse(std::string(name) + " must have the batch innermost, without gaps");
    }
    data = v.data;
    channels = c;
    length = n * h * w;
    extent = a.extent;
  }
};

void normalize(const Input& x_array, const std::optional<Input>& weight_array,
               const std::optional<Input>& bias_array, float eps, const Output& y_array,
               const Output& mean_array, const Output& variance_array, int threads) {
  const Rows x(x_array, "x"), y(y_array, "y");
  require(x.channels == y.channels && x.length == y.length, "x and y differ in size");
  require(x.length > 0, "there is nothing to take the mean of");
  const Row<float> mean(mean_array, "mean", x.channels);
  const Row<float> variance(variance_array, "variance", x.channels);
  check_output(y.extent, {&x.extent, &mean.extent, &variance.extent});
  check_output(mean.extent, {&x.extent, &variance.extent});
  check_output(variance.extent, {&x.extent});
  const float* given[2] = {nullptr, nullptr};
  for (int i = 0; i < 2; ++i) {
    const auto& array = i ? bias_array : weight_array;
    if (!array) continue;
    const Row<const float> row(*array, i ? "bias" : "weight", x.channels);
    for (const Extent* output : {&y.extent, &mean.extent, &variance.extent}) {
      check_output(*output, {&row.extent});
    }
    given[i] = row.data;
  }
  check_threads(threads);
  nb::gil_scoped_release release;
  current.load()->normalize(x.channels, x.length, x.data, given[0], given[1], eps, y.data,
                            mean.data, variance.data, threads);
}

void normalize_gradient(const Input& x_array, const Input& dy_array,
                        const std::optional<Input>& weight_array, const Input& mean_array,
                        const Input& variance_array, float eps, const Output& dx_array,
                        const Output& dweight_array, const Output& dbias_array, int threads) {
  const Rows x(x_array, "x"), dy(dy_array, "dy"), dx(dx_array, "dx");
  require(x.channels == dy.channels && x.length == dy.length && x.channels == dx.channels &&
              x.length == dx.length,
          "x, dy and dx differ in size");
  require(x.length > 0, "there is nothing to take the mean of");
  const Row<const float> mean(mean_array, "mean", x.channels);
  const Row<const float> variance(variance_array, "variance", x.channels);
  const Row<float> dweight(dweight_array, "dweight", x.channels);
  const Row<float> dbias(dbias_array, "dbias", x.channels);
  std::optional<Row<const float>> weight;
  if (weight_array) weight.emplace(*weight_array, "weight", x.channels);
  const std::array<const Extent*, 3> outputs = {&dx.extent, &dweight.extent, &dbias.extent};
  for (const Extent* output : outputs) {
    check_output(*output, {&x.extent, &dy.extent, &mean.extent, &variance.extent});
    if (weight) check_output(*output, {&weight->extent});
    for (const Extent* other : outputs) {
      if (other != output) check_output(*output, {other});
    }
  }
  check_threads(threads);
  nb::gil_scoped_release release;
  current.load()->normalize_gradient(x.channels, x.length, x.data, dy.data,
                                     weight ? weight->data : nullptr, mean.data, variance.data, eps,
                                     dx.data, dweight.data, dbias.data, threads);
}

}  // namespace
}  // namespace isoflop

NB_MODULE(_native, m) {
  using namespace isoflop;
  current = supported().front();
  m.def("forward", &forward, nb::arg("x"), nb::arg("values"), nb::arg("index"), nb::arg("tiling"),
        nb::arg("groups"), nb::arg("kernel"), nb::arg("stride"), nb::arg("padding"),
        nb::arg("dilation"), nb::arg("y"), nb::arg("bias").none(), nb::arg("residual").none(),
        nb::arg("activation"), nb::arg("bfloat16"), nb::arg("threads"));
  m.def("input_gradient", &input_gradient, nb::arg("dy"), nb::arg("values"), nb::arg("index"),
        nb::arg("tiling"), nb::arg("groups"), nb::arg("kernel"), nb::arg("stride"),
        nb::arg("padding"), nb::arg("dilation"), nb::arg("dx"), nb::arg("bfloat16"),
        nb::arg("threads"));
  m.def("weight_gradient", &weight_gradient, nb::arg("x"), nb::arg("dy"), nb::arg("index"),
        nb::arg("tiling"), nb::arg("groups"), nb::arg("kernel"), nb::arg("stride"),
        nb::arg("padding"), nb::arg("dilation"), nb::arg("dvalues"), nb::arg("bfloat16"),
        nb::arg("threads"));
  m.def("normalize", &normalize, nb::arg("x"), nb::arg("weight").none(), nb::arg("bias").none(),
        nb::arg("eps"), nb::arg("y"), nb::arg("mean"), nb::arg("variance"), nb::arg("threads"));
  m.def("normalize_gradient", &normalize_gradient, nb::arg("x"), nb::arg("dy"),
        nb::arg("weight").none(), nb::arg("mean"), nb::arg("variance"), nb::arg("eps"),
        nb::arg("dx"), nb::arg("dweight"), nb::arg("dbias"), nb::arg("threads"));
  m.def("isa", [] { return std::string(current.load()->name); });
  m.def("isas", &isas);
  m.def("has_bfloat16", &has_bfloat16);
  m.def("set_isa", &set_isa, nb::arg("name"));
}
