#define LANES 4
#include "engine.h"

namespace isoflop {

const Kernels neon{"neon", [] { return true; }, forward, input_gradient, weight_gradient, normalize,
                   normalize_gradient};

}  // namespace isoflop
