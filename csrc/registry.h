// Which instruction sets were compiled, fastest first.
#pragma once

#include <vector>

#include "kernels.h"

namespace isoflop {

inline std::vector<const Kernels*> compiled() {
  return {
#ifdef ISOFLOP_AVX512
      &avx512,
#endif
#ifdef ISOFLOP_AVX2
      &avx2,
#endif
#ifdef ISOFLOP_NEON
      &neon,
#endif
      &portable,
  };
}

}  // namespace isoflop
