#define LANES 4
#include "engine.h"
#include "norm.h"

namespace isoflop {

const Kernels neon{
    "neon", [] { return true; }, precision<float>, nullptr, nullptr, normalize, normalize_gradient,
};

}  // namespace isoflop
