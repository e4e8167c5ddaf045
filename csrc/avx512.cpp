#define LANES 16
#include "engine.h"
#include "norm.h"

namespace isoflop {

const Kernels avx512{"avx512",
                     [] {
                       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
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
