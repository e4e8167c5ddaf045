#define LANES 8
#include "engine.h"
#include "norm.h"

namespace isoflop {

const Kernels avx2{"avx2",
                   [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
                   precision<float>, nullptr, nullptr, normalize,
                   normalize_gradient};

}  // namespace isoflop
