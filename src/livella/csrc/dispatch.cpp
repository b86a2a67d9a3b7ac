// Which variant runs: the widest that the processor has, or the one asked for.
#include <cstring>

#include "kernels.h"

namespace livella {

#define LIVELLA_TABLES(isa)                                          \
  extern const Kernels isa##_f32, isa##_f64, isa##_bf16, isa##_f16; \
  static const InstructionSet isa = {#isa, {&isa##_f32, &isa##_f64, &isa##_bf16, &isa##_f16}};

LIVELLA_TABLES(portable)
#ifdef LIVELLA_X86
LIVELLA_TABLES(avx2)
LIVELLA_TABLES(avx512)

static bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

const InstructionSet* choose_instruction_set(const char* wanted) {
  const bool any = wanted == nullptr || *wanted == '\0';
#ifdef LIVELLA_X86
  if ((any || !std::strcmp(wanted, "avx512")) && has_avx512()) return &avx512;
  if ((any || !std::strcmp(wanted, "avx2")) && has_avx2()) return &avx2;
#endif
  if (any || !std::strcmp(wanted, "portable")) return &portable;
  return nullptr;
}

}  // namespace livella
