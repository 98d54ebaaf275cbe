#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

// What csrc/cuda uses of CUDA, for a C++ compiler: the kernels run on the CPU, each thread of a block as a fiber.
// Barriers and the operations of a warp are where fibers meet; emulation.cpp schedules them. It stands in for every
// CUDA header. Stricter than a GPU: all threads of a block come to a barrier, all lanes of a warp to an operation, at
// the same line of the source.

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Globals, as one thread runs at a time.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
cudaError_t cudaGetLastError();

// So few that small problems take the path of one run of samples for each tile, too.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 6;
  return cudaSuccess;
}

#define C10_CUDA_CHECK(call) \
  if ((call) != cudaSuccess) throw std::runtime_error("a launch was refused: " #call)

namespace c10::cuda {
struct CUDAGuard {
  template <class Device>
  explicit CUDAGuard(const Device&) {}
};
inline cudaStream_t getCurrentCUDAStream() { return nullptr; }
}  // namespace c10::cuda

namespace emulation {

// Runs a kernel: every cluster of `size` blocks, neighbours along x, one after the other. Throws where threads wait for
// each other without end. given: bytes of shared memory that the launch gives each block.
void run(dim3 grid, dim3 block, const std::function<void()>& thread, unsigned size = 1, size_t given = 0);
void* given_shared(size_t bytes);

// A copy of 16 bytes to shared memory, or of zeros, by the thread that runs. It comes at once in the order "forward";
// no sooner than the thread waits for it in "reverse"; and then or then in "shuffled": so a wait that is missing shows,
// and a buffer that others still read.
void start_copy(void* shared, const void* global);
void commit_copies();
void wait_copies(size_t pending);

void cluster_barrier(const char* operation, int line);
// Where the address in this block's shared memory lies in that of another block of the cluster.
void* in_block(void* shared, unsigned rank);
bool in_reverse();

// `kernel<<<grid, block, shared, stream>>>(arguments)`
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t, cudaStream_t, A&&... arguments) {
  const std::tuple<std::decay_t<P>...> values(arguments...);
  run(grid, block, [&] { std::apply(kernel, values); });
}

// Ends the launch with an error.
[[noreturn]] void fail(const std::string& what);

// Memory of the current block for one declaration, filled with ones: NaN, -1.
void* shared_memory(const void* declaration, size_t bytes);

template <class T, int Declaration>
T& shared() {
  static const char declaration = 0;
  return *static_cast<T*>(shared_memory(&declaration, sizeof(T)));
}

// What a lane brings to an operation of its warp.
struct Words {
  uint32_t word[6];
};

// Waits for the other lanes; gives what each of the 32 has brought.
const Words* meet(const char* operation, int line, unsigned mask, const Words& mine);
int lane();

template <class T>
Words words_of(const T& value) {
  static_assert(sizeof(T) <= sizeof(Words) && std::is_trivially_copyable_v<T>);
  Words words{};
  std::memcpy(&words, &value, sizeof(T));
  return words;
}

template <class T>
T from(const Words& words) {
  T value;
  std::memcpy(&value, &words, sizeof(T));
  return value;
}

template <class To, class From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

}  // namespace emulation

// The line is that of the call.
void __syncthreads(int line = __builtin_LINE());

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  emulation::meet("__syncwarp", line, mask, {});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int line = __builtin_LINE()) {
  const auto* all = emulation::meet("__shfl_xor_sync", line, mask, emulation::words_of(value));
  return emulation::from<T>(all[emulation::lane() ^ lanes]);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int line = __builtin_LINE()) {
  return emulation::from<T>(emulation::meet("__shfl_sync", line, mask, emulation::words_of(value))[source % 32]);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int line = __builtin_LINE()) {
  const auto* all = emulation::meet("__shfl_down_sync", line, mask, emulation::words_of(value));
  const unsigned source = emulation::lane() + lanes;
  return source < 32 ? emulation::from<T>(all[source]) : value;
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  const auto* all = emulation::meet("__ballot_sync", line, mask, emulation::words_of(predicate));
  unsigned found = 0;
  for (int i = 0; i < 32; ++i) found |= unsigned(all[i].word[0] != 0) << i;
  return found;
}

inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  const auto* all = emulation::meet("__any_sync", line, mask, emulation::words_of(predicate));
  for (int i = 0; i < 32; ++i)
    if (all[i].word[0]) return 1;
  return 0;
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
  const auto* all = emulation::meet("__reduce_max_sync", line, mask, emulation::words_of(value));
  unsigned most = 0;
  for (int i = 0; i < 32; ++i) most = all[i].word[0] > most ? all[i].word[0] : most;
  return most;
}

using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;

inline float __half2float(__half x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }

inline unsigned short __half_as_ushort(__half x) { return x.x; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.x; }
inline __half __ushort_as_half(unsigned short x) { return __half(x, __half::from_bits()); }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16(x, __nv_bfloat16::from_bits()); }
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline double __hiloint2double(int high, int low) {
  return emulation::bits<double>(uint64_t(unsigned(high)) << 32 | unsigned(low));
}
inline int __double2hiint(double x) { return int(emulation::bits<uint64_t>(x) >> 32); }
inline int __double2loint(double x) { return int(emulation::bits<uint64_t>(x)); }
inline float __uint_as_float(unsigned x) { return emulation::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulation::bits<unsigned>(x); }
inline float __double2float_rd(double x) {
  const float nearest = float(x);
  return nearest > x ? std::nextafterf(nearest, -INFINITY) : nearest;
}
inline float __uint2float_rd(unsigned x) { return __double2float_rd(x); }
// Zero for finite x beyond 2^126, as the CUDA C++ Programming Guide has it.
inline float __fdividef(float x, float y) {
  const float size = std::fabs(y);
  return size > 0x1p126f && size < INFINITY ? x * 0 : x / y;
}
inline double sinpi(double x) { return std::sin(M_PI * (x - 2 * std::floor(x / 2))); }
inline double cospi(double x) { return std::cos(M_PI * (x - 2 * std::floor(x / 2))); }
