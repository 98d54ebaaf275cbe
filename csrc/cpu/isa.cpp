#include "isa.h"

#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <atomic>

namespace curvext::cpu {

namespace portable {
const Primitives& primitives();
}
#if defined(__x86_64__)
namespace avx2 {
const Primitives& primitives();
}
namespace avx512 {
const Primitives& primitives();
}
#endif

namespace {

std::vector<const Primitives*> available() {
  std::vector<const Primitives*> levels{&portable::primitives()};
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2) levels.push_back(&avx2::primitives());
  if (has_avx2 && has_avx512) levels.push_back(&avx512::primitives());
#endif
  return levels;
}

std::atomic<const Primitives*>& current() {
  static std::atomic<const Primitives*> level{available().back()};
  return level;
}

std::atomic<bool>& by_tiles() {
#if defined(__x86_64__)
  static std::atomic<bool> tiles{at::hasMKL() && __builtin_cpu_is("amd")};
#else
  static std::atomic<bool> tiles{false};
#endif
  return tiles;
}

}  // namespace

bool products_by_tiles() { return by_tiles().load(std::memory_order_relaxed); }

void use_products_by_tiles(bool tiles) { by_tiles().store(tiles, std::memory_order_relaxed); }

const Primitives& primitives() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const Primitives* level : available()) names.emplace_back(level->name);
  return names;
}

std::string simd_level() { return primitives().name; }

void use_simd(const std::string& level) {
  for (const Primitives* candidate : available()) {
    if (level == candidate->name) {
      current().store(candidate, std::memory_order_relaxed);
      return;
    }
  }
  std::string names;
  for (const std::string& name : simd_levels()) names += " " + name;
  TORCH_CHECK_VALUE(false, "use_simd: level is '", level, "', expected one that this processor runs:", names);
}

}  // namespace curvext::cpu
