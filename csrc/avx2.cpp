#define LANES 8
#include "engine.h"
#include "norm.h"

namespace isoflop {

const Kernels avx2{
    "avx2", runs_avx2, precision<float>, nullptr, nullptr, normalize, normalize_gradient,
};

}  // namespace isoflop
