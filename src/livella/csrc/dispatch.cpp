// Which variant runs: the widest that the processor has, or the one asked for.
#include <cstring>

#include "kernels.h"

namespace livella {

extern const Kernels portable_kernels;
#ifdef LIVELLA_X86
extern const Kernels avx2_kernels, avx512_kernels;

static bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const Kernels* choose_kernels(const char* wanted) {
  const bool any = wanted == nullptr || *wanted == '\0';
#ifdef LIVELLA_X86
  if ((any || !std::strcmp(wanted, "avx512")) && has_avx512()) return &avx512_kernels;
  if ((any || !std::strcmp(wanted, "avx2")) && has_avx2()) return &avx2_kernels;
#endif
  if (any || !std::strcmp(wanted, "portable")) return &portable_kernels;
  return nullptr;
}

}  // namespace livella
