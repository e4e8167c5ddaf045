#define LANES 16
#include "engine.h"

namespace isoflop {

const Kernels avx512{"avx512",
                     [] {
                       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
                     },
                     forward, input_gradient, weight_gradient, normalize,
                     normalize_gradient};

}  // namespace isoflop
