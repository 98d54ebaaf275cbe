#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CURVEXT_HOST_DEVICE __host__ __device__
#else
#define CURVEXT_HOST_DEVICE
#endif

// Random numbers that depend on where they are used, not on when: every one is a hash of its counters, the same on
// every device and for every cut of the data into batches.
namespace curvext {

// The increment and the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
// 2014).
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
constexpr uint64_t kMixFirst = 0xBF58476D1CE4E5B9u;
constexpr uint64_t kMixSecond = 0x94D049BB133111EBu;

CURVEXT_HOST_DEVICE inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * kMixFirst;
  x = (x ^ (x >> 27)) * kMixSecond;
  return x ^ (x >> 31);
}

// The number in (0, 1) that 64 bits stand for; exact, and neither 0 nor 1.
CURVEXT_HOST_DEVICE inline double uniform(uint64_t bits) { return (double(bits >> 12) + 0.5) * 0x1p-52; }

// Counters of a batch of draws: (seed, draw, datum, position), and a last one that the kernel chooses.
struct Draw {
  int64_t seed, draw, first;  // `first` is the index of the batch's first datum
  int64_t positions;          // of one datum

  CURVEXT_HOST_DEVICE uint64_t datum(int64_t n) const {
    const uint64_t state = mixed(mixed(uint64_t(seed) + kGolden) ^ uint64_t(draw) * kGolden);
    return mixed(state ^ uint64_t(first + n) * kGolden);
  }

  // State of position `id`, counted over the batch.
  CURVEXT_HOST_DEVICE uint64_t state(int64_t id) const {
    return mixed(datum(id / positions) ^ uint64_t(id % positions) * kGolden);
  }
};

}  // namespace curvext
