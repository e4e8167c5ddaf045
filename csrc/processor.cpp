// Whether this machine, processor and operating system both, runs what the other files were
// compiled for. This one has no flags of its own: the answer must not take the instructions that it
// is about. Every extension that the flags in CMakeLists.txt turn on is asked for by name, as
// virtual machines may hide any of them.
#include "kernels.h"

namespace isoflop {

#if defined(__x86_64__)
// These also ask the system, by XGETBV, whether it keeps the vector registers.
bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("popcnt");
}

bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#endif

#if defined(ISOFLOP_AVX512_BFLOAT16)
bool runs_avx512_bfloat16() { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

}  // namespace isoflop
