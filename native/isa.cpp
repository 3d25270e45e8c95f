// Which instruction set to use: the best this processor has, or the one named by STENO_ISA.
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "fault.h"
#include "kernels.h"

namespace steno {
namespace {

#if defined(__x86_64__)
// AMX: the processor has int8 tiles, and the system lets this process use them (Linux asks to be asked).
bool tiles_granted() {
  unsigned a, b, c, d;
  constexpr unsigned TILE = 1u << 24, INT8 = 1u << 25;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (TILE | INT8)) != (TILE | INT8)) return false;
#if defined(__linux__)
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return false;
#endif
}
#endif

const Kernels* const* usable() {
  static const Kernels* list[6] = {};
  if (list[0]) return list;
  int n = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool two = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  bool five = two && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  bool vnni = five && __builtin_cpu_supports("avx512vnni");
  if (vnni && tiles_granted()) list[n++] = &amx::table;
  if (vnni) list[n++] = &avx512vnni::table;
  if (five) list[n++] = &avx512::table;
  if (two) list[n++] = &avx2::table;
#elif defined(__aarch64__)
#if defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) list[n++] = &neondot::table;
#elif defined(__APPLE__)
  list[n++] = &neondot::table;  // every such processor has it
#endif
  list[n++] = &neon::table;
#endif
  list[n] = &scalar::table;
  return list;
}

}  // namespace

const char* const* kernel_names() {
  static const char* names[6] = {};
  for (int i = 0; usable()[i]; i++) names[i] = usable()[i]->name;
  return names;
}

const Kernels* kernels_by_name(const char* name) {
  for (int i = 0; usable()[i]; i++)
    if (!std::strcmp(usable()[i]->name, name)) return usable()[i];
  return nullptr;
}

const Kernels& kernels() {
  const char* name = std::getenv("STENO_ISA");
  if (!name || !*name) return *usable()[0];
  const Kernels* k = kernels_by_name(name);
  if (k) return *k;
  std::string known;
  for (int i = 0; usable()[i]; i++) known += std::string(i ? ", " : "") + usable()[i]->name;
  throw Fault(Fault::USER, std::string("STENO_ISA: \"") + name + "\" is not an instruction set this processor can run; it can run " +
                               known + ". Unset STENO_ISA to use the best.");
}

}  // namespace steno
