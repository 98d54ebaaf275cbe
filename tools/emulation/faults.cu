#include <cuda_runtime.h>

#include <cstdio>
#include <string>
#include <vector>

// Kernels with a planted fault each, for tests/test_cuda_emulation.py: the emulation must see every one of them.
namespace curvext::cpu {
void use_simd(const std::string& level);
}

namespace {

constexpr int kThreads = 64;

__global__ void reads_unwritten_memory(int* out) {
  __shared__ int values[kThreads];
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void lacks_a_barrier(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

__global__ void lacks_nothing(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x] + __shfl_down_sync(~0u, 0, 1);
}

__global__ void half_comes_to_the_barrier(int* out) {
  if (threadIdx.x < kThreads / 2) __syncthreads();
  out[threadIdx.x] = 0;
}

__global__ void halves_come_to_two_barriers(int* out) {
  if (threadIdx.x < kThreads / 2) __syncthreads();
  else out[threadIdx.x] = 0;
  if (threadIdx.x >= kThreads / 2) __syncthreads();
}

__global__ void one_lane_shuffles(int* out) {
  if (threadIdx.x == 0) out[0] = __shfl_xor_sync(~0u, 1, 1);
}

void report(const char* name, void (*kernel)(int*)) {
  for (const char* order : {"forward", "reverse", "shuffled"}) {
    curvext::cpu::use_simd(order);
    std::vector<int> out(kThreads);
    std::printf("%s %s", name, order);
    try {
      kernel<<<1, kThreads>>>(out.data());
      for (int x : out) std::printf(" %d", x);
      std::printf("\n");
    } catch (const std::exception& error) {
      std::printf(" %s\n", error.what());
    }
  }
}

}  // namespace

int main() {
  report("reads_unwritten_memory", reads_unwritten_memory);
  report("lacks_a_barrier", lacks_a_barrier);
  report("lacks_nothing", lacks_nothing);
  report("half_comes_to_the_barrier", half_comes_to_the_barrier);
  report("halves_come_to_two_barriers", halves_come_to_two_barriers);
  report("one_lane_shuffles", one_lane_shuffles);
}
