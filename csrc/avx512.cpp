#define LANES 16
#include "engine.h"
#include "norm.h"

namespace isoflop {

const Kernels avx512{
    "avx512",         runs_avx512,          precision<float>,
#ifdef ISOFLOP_AVX512_BFLOAT16
    &avx512_bfloat16, runs_avx512_bfloat16,
#else
    nullptr,          nullptr,
#endif
    normalize,        normalize_gradient,
};

}  // namespace isoflop
