#define LANES 16
#include "bfloat16.h"
#include "engine.h"

namespace isoflop {

const Precision avx512_bfloat16 = precision<Bfloat16>;

}  // namespace isoflop
