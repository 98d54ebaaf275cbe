// Counter-based random numbers in vectors; included once for each level.
namespace curvext::cpu::CURVEXT_ISA {

CURVEXT_INLINE Counters mixed(Counters x) {
  x = (x ^ (x >> 30)) * kMixFirst;
  x = (x ^ (x >> 27)) * kMixSecond;
  return x ^ (x >> 31);
}

// uniform(bits) exactly: the bits as the mantissa of a number in [1, 2), and half a step.
CURVEXT_INLINE Doubles uniform(Counters bits) {
  return ((Doubles)((bits >> 12) | 0x3ff0000000000000u) - 1.0) + 0x1p-53;
}

// The counters of positions `at`, `at` + step, ... before they are hashed with their datum.
CURVEXT_INLINE Counters counters(int64_t at, uint64_t step) {
  return (uint64_t(at) + (Counters)lane_index<double>() * step) * kGolden;
}

}  // namespace curvext::cpu::CURVEXT_ISA
