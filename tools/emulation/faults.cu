#include "clusters.h"
#include "instructions.h"

#include <cstdio>
#include <string>
#include <vector>

// Kernels with a planted fault each, for tests/test_cuda_emulation.py: the emulation must see every one of them.
namespace curvext::cpu {
void use_simd(const std::string& level);
}

namespace {

using namespace curvext::cuda;

constexpr int kThreads = 64;

alignas(16) int kNumbers[5][kThreads][4];

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

// Sums over four stages what other threads have copied, one stage ahead.
template <int Pending, bool Barrier>
__global__ void copies_ahead(int* out) {
  __shared__ int stages[2][kThreads][4];
  const int t = threadIdx.x;
  out[t] = 0;
  copy_async(stages[0][t], kNumbers[0][t], 0, 1);
  commit_copies();
  for (int stage = 0; stage < 4; ++stage) {
    copy_async(stages[(stage + 1) % 2][t], kNumbers[stage + 1][t], 0, stage < 3 ? 1 : 0);
    commit_copies();
    wait_copies<Pending>();
    __syncthreads();
    out[t] += stages[stage % 2][kThreads - 1 - t][0];
    if (Barrier) __syncthreads();  // before the next copy overwrites what others read
  }
  wait_copies<0>();
}

__global__ void returns_with_copies(int* out) {
  __shared__ int stage[kThreads][4];
  out[threadIdx.x] = 0;
  copy_async(stage[threadIdx.x], kNumbers[0][threadIdx.x], 0, 1);
  commit_copies();
}

// Each block of two writes to the other.
template <bool Barrier>
__global__ void blocks_exchange(int* out) {
  __shared__ int values[kThreads / 2];
  const int t = threadIdx.x, own = blockIdx.x * kThreads / 2 + t;
  cluster_begin();
  put_in_block(&values[t], 1 - blockIdx.x, own);
  if (Barrier) cluster_barrier();
  out[own] = values[t];
}

template <void (*kernel)(int*)>
void alone(int* out) {
  kernel<<<1, kThreads>>>(out);
}

template <bool Barrier>
void in_clusters(int* out) {
  launch_clusters(blocks_exchange<Barrier>, dim3(2), dim3(kThreads / 2), 2, nullptr, out);
}

void report(const char* name, void (*run)(int*)) {
  for (const char* order : {"forward", "reverse", "shuffled"}) {
    curvext::cpu::use_simd(order);
    std::vector<int> out(kThreads);
    std::printf("%s %s", name, order);
    try {
      run(out.data());
      for (int x : out) std::printf(" %d", x);
      std::printf("\n");
    } catch (const std::exception& error) {
      std::printf(" %s\n", error.what());
    }
  }
}

}  // namespace

int main() {
  for (int i = 0; i < 5 * kThreads * 4; ++i) (&kNumbers[0][0][0])[i] = i / 4;
  report("reads_unwritten_memory", alone<reads_unwritten_memory>);
  report("lacks_a_barrier", alone<lacks_a_barrier>);
  report("lacks_nothing", alone<lacks_nothing>);
  report("half_comes_to_the_barrier", alone<half_comes_to_the_barrier>);
  report("halves_come_to_two_barriers", alone<halves_come_to_two_barriers>);
  report("one_lane_shuffles", alone<one_lane_shuffles>);
  report("copies_ahead", alone<copies_ahead<1, true>>);
  report("copies_lack_a_wait", alone<copies_ahead<2, true>>);
  report("copies_lack_a_barrier", alone<copies_ahead<1, false>>);
  report("returns_with_copies", alone<returns_with_copies>);
  report("blocks_exchange", in_clusters<true>);
  report("blocks_lack_a_barrier", in_clusters<false>);
}
