// Which instruction set to use: the best this processor has, or the one named by STENO_ISA.
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

const Kernels* const* usable() {
  static const Kernels* list[5] = {};
  if (list[0]) return list;
  int n = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool two = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool five = two && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (five && __builtin_cpu_supports("avx512vnni")) list[n++] = &avx512vnni::table;
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
  static const char* names[5] = {};
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
