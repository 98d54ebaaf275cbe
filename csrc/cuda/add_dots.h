#pragma once

#include "launch.h"
#include "widen.h"

// out[r] += sum_sc x[r,s,c] y[r,s,c]: one block for each row, summed in a fixed order.
namespace curvext::cuda {
namespace {

constexpr int kDotThreads = 256;

template <class S, class T>
__global__ void __launch_bounds__(kDotThreads) add_dots_kernel(DotsLaunch l) {
  __shared__ T sums[kDotThreads];
  const T* x = static_cast<const T*>(l.x) + int64_t(blockIdx.x) * l.x_row;
  const S* y = static_cast<const S*>(l.y) + int64_t(blockIdx.x) * l.y_row;
  T sum = 0;
  for (int64_t s = 0; s < l.positions; ++s)
    for (int64_t c = threadIdx.x; c < l.features; c += kDotThreads)
      sum += x[s * l.x_position + c] * widened(y[s * l.y_position + c]);
  sums[threadIdx.x] = sum;
  for (int half = kDotThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) static_cast<T*>(l.out)[int64_t(blockIdx.x) * l.out_row] += sums[0];
}

template <class S, class T>
cudaError_t add_dots(const DotsLaunch& l, cudaStream_t stream) {
  if (l.rows == 0) return cudaSuccess;
  add_dots_kernel<S, T><<<unsigned(l.rows), kDotThreads, 0, stream>>>(l);
  return cudaGetLastError();
}

}  // namespace
}  // namespace curvext::cuda
