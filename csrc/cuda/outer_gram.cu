#include "launch.h"

// out[n,m] += sum_st p[n,s,m,t] q[n,s,m,t] over the inner products that cuBLAS has formed: one warp for each (n,m), or
// a thread where it is one product.
namespace curvext::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32;

template <class T>
__global__ void __launch_bounds__(kThreads) add_pairs_kernel(PairsLaunch l) {
  const int64_t pair = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  if (pair >= l.N * l.M) return;  // all lanes of a warp together
  const int64_t n = pair / l.M, m = pair % l.M;
  T sum = 0;
  for (int64_t x = lane; x < l.S * l.R; x += kWarp) {
    const int64_t at = ((n * l.S + x / l.R) * l.M + m) * l.R + x % l.R;
    sum += static_cast<const T*>(l.p)[at] * static_cast<const T*>(l.q)[at];
  }
  for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_down_sync(0xffffffffu, sum, half);
  if (lane == 0) static_cast<T*>(l.out)[n * l.out_row + m * l.out_column] += sum;
}

// S = R = 1: a block takes 256 neighbours along m of every `gridDim.y`th n.
template <class T>
__global__ void __launch_bounds__(kThreads) add_products_kernel(PairsLaunch l) {
  const int64_t m = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (m >= l.M) return;
  for (int64_t n = blockIdx.y; n < l.N; n += gridDim.y)
    static_cast<T*>(l.out)[n * l.out_row + m * l.out_column] +=
        static_cast<const T*>(l.p)[n * l.M + m] * static_cast<const T*>(l.q)[n * l.M + m];
}

template <class T>
cudaError_t run(const PairsLaunch& l, cudaStream_t stream) {
  const int64_t blocks = (l.N * l.M * kWarp + kThreads - 1) / kThreads;
  if (blocks == 0) return cudaSuccess;
  if (l.S == 1 && l.R == 1) {
    const dim3 grid(unsigned((l.M + kThreads - 1) / kThreads), unsigned(l.N < 65535 ? l.N : 65535));
    add_products_kernel<T><<<grid, kThreads, 0, stream>>>(l);
    return cudaGetLastError();
  }
  add_pairs_kernel<T><<<unsigned(blocks), kThreads, 0, stream>>>(l);
  return cudaGetLastError();
}

}  // namespace

cudaError_t outer_gram(const PairsLaunch& launch, cudaStream_t stream) {
  return launch.type == Type::float64 ? run<double>(launch, stream) : run<float>(launch, stream);
}

}  // namespace curvext::cuda
