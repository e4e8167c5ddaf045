// The interface between the kernels and whoever calls them: plain structs and pointers.
//
// All sizes and strides are in elements of float. Callers check everything; kernels trust them.
#pragma once

#include <cstdint>

namespace isoflop {

// Where the non-zeros of a weight are. See src/isoflop/kernels/cpu/index.py for the order of
// entries.
struct Index {
  int64_t entries;            // nnz / rows
  int rows;                   // output channels that share an entry: 1 or 4
  int block_in, block_out;    // channels of a tile
  const uint16_t* offsets;    // [entries]
  const int32_t* starts;      // [groups * blocks_in * out / groups / rows + 1]
  const uint32_t* t_entries;  // [entries]
  const int32_t* t_starts;    // [groups * blocks_out * in / groups + 1]
};

// A convolution over n images; a linear layer over n rows is one with h = w = kh = kw = 1.
struct Geometry {
  int64_t n;
  int64_t groups, in, out;  // all channels, not those of a group
  int64_t h, w, oh, ow;
  int64_t kh, kw, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// Activations, (n, c, h, w) with any non-negative strides. Fast if n or c has stride 1, or, for
// few images, w.
struct View {
  float* data;
  int64_t n, c, h, w;
};

enum class Activation { none, relu, gelu, silu };

// What happens to an output before it is stored: activation(sum + bias + residual).
struct Epilogue {
  const float* bias;  // [out], or null
  View residual;      // data may be null
  Activation activation;
};

// The products. Inputs and results are float32; what is multiplied may be rounded first.
struct Precision {
  // y = activation(conv(x) + bias + residual). Overwrites y.
  void (*forward)(const Geometry&, const Index&, const float* values, const View& x, const View& y,
                  const Epilogue&, int threads);
  // dx = gradient of the input. Overwrites dx.
  void (*input_gradient)(const Geometry&, const Index&, const float* values, const View& dy,
                         const View& dx, int threads);
  // dvalues[nnz] = gradient of the values. Overwrites dvalues.
  void (*weight_gradient)(const Geometry&, const Index&, const View& x, const View& dy,
                          float* dvalues, int threads);
};

struct Kernels {
  const char* name;
  bool (*supported)();
  Precision float32;
  // Rounds both factors to bfloat16, and sums their products in float32. Null, or to be used only
  // where supported.
  const Precision* bfloat16;
  bool (*supports_bfloat16)();
  // y = (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and the (biased) variance
  // of each of the channels, rows of `length`. Overwrites y, mean and variance; weight and bias may
  // be null.
  void (*normalize)(int64_t channels, int64_t length, const float* x, const float* weight,
                    const float* bias, float eps, float* y, float* mean, float* variance,
                    int threads);
  // Gradients of that: overwrites dx, dweight and dbias.
  void (*normalize_gradient)(int64_t channels, int64_t length, const float* x, const float* dy,
                             const float* weight, const float* mean, const float* variance,
                             float eps, float* dx, float* dweight, float* dbias, int threads);
};

// One per instruction set that was compiled; each in a file of its own, with its own flags.
extern const Kernels portable;
extern const Kernels avx2;
extern const Kernels avx512;
extern const Kernels neon;
extern const Precision avx512_bfloat16;

// Whether this machine runs them.
bool runs_avx2();
bool runs_avx512();
bool runs_avx512_bfloat16();

}  // namespace isoflop
