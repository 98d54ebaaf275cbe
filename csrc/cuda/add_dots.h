#pragma once

#include "clusters.h"
#include "launch.h"
#include "widen.h"

// out[r] += sum_sc x[r,s,c] y[r,s,c]: one block for each row, or where there are few rows a cluster of them, summed in
// a fixed order.
namespace curvext::cuda {
namespace {

constexpr int kDotThreads = 256, kDotRun = 8;  // values whose loads a thread has on their way at once

template <class S, class T>
__device__ T dot_of(const T* x, const S* y, int64_t begin, int64_t end) {
  T sum = 0;
  for (int64_t c = begin + threadIdx.x; c < end; c += kDotRun * kDotThreads) {
    T left[kDotRun], right[kDotRun];
#pragma unroll
    for (int i = 0; i < kDotRun; ++i) {
      const int64_t at = c + i * kDotThreads;
      left[i] = at < end ? x[at] : T(0);
      right[i] = at < end ? T(widened(y[at])) : T(0);
    }
#pragma unroll
    for (int i = 0; i < kDotRun; ++i) sum += left[i] * right[i];
  }
  return sum;
}

template <class S, class T>
__global__ void __launch_bounds__(kDotThreads) add_dots_kernel(DotsLaunch l) {
  __shared__ T sums[kDotThreads], parts[kMostBlocks];
  const int blocks = int(gridDim.x / l.rows), rank = int(blockIdx.x) % blocks, row = int(blockIdx.x) / blocks;
  if (blocks > 1) cluster_begin();
  const T* x = static_cast<const T*>(l.x) + int64_t(row) * l.x_row;
  const S* y = static_cast<const S*>(l.y) + int64_t(row) * l.y_row;
  T sum = 0;
  if (l.positions == 1) {
    sum = dot_of(x, y, l.features * rank / blocks, l.features * (rank + 1) / blocks);
  } else {
    for (int64_t s = l.positions * rank / blocks; s < l.positions * (rank + 1) / blocks; ++s)
      sum += dot_of(x + s * l.x_position, y + s * l.y_position, 0, l.features);
  }
  sums[threadIdx.x] = sum;
  for (int half = kDotThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) parts[0] = sums[0];
  if (blocks > 1) {
    if (threadIdx.x == 0) put_in_block(&parts[rank], 0, sums[0]);
    cluster_barrier();
  }
  if (threadIdx.x || rank) return;
  sum = parts[0];
  for (int block = 1; block < blocks; ++block) sum += parts[block];
  static_cast<T*>(l.out)[int64_t(row) * l.out_row] += sum;
}

template <class S, class T>
cudaError_t add_dots(const DotsLaunch& l, cudaStream_t stream) {
  if (l.rows == 0) return cudaSuccess;
  constexpr int64_t kFew = 256;  // with fewer rows none of the 132 processors of an H100 has more than two blocks
  const bool has_parts = l.positions == 1 || l.positions >= kMostBlocks;  // no block of a cluster goes without
  const bool divides = l.rows < kFew && has_parts && l.positions * l.features >= kMostBlocks * kDotRun * kDotThreads;
  if (divides && has_clusters(add_dots_kernel<S, T>))
    return launch_clusters(add_dots_kernel<S, T>, dim3(unsigned(l.rows) * kMostBlocks), dim3(kDotThreads), kMostBlocks,
                           stream, l);
  add_dots_kernel<S, T><<<unsigned(l.rows), kDotThreads, 0, stream>>>(l);
  return cudaGetLastError();
}

}  // namespace
}  // namespace curvext::cuda
