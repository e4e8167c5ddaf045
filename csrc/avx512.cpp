#define LANES 16
#include "engine.h"
#include "norm.h"

namespace isoflop {

const Kernels avx512{"avx512",
                     // All that the flags of this file let the compiler use.
                     [] {
                       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                              __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
                     },
                     precision<float>,
#ifdef ISOFLOP_AVX512_BFLOAT16
                     &avx512_bfloat16,
#else
                     nullptr,
#endif
                     [] { return bool(__builtin_cpu_supports("avx512bf16")); },
                     normalize,
                     normalize_gradient};

}  // namespace isoflop
