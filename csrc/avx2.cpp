#define LANES 8
#include "engine.h"

namespace isoflop {

const Kernels avx2{"avx2",
                   [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
                   forward, input_gradient, weight_gradient, normalize,
                   normalize_gradient};

}  // namespace isoflop
