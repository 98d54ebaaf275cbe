#pragma once

#include "cuda.h"

// Stands in for csrc/cuda/clusters.h: the blocks of a cluster run at the same time, and only theirs.
namespace curvext::cuda {
namespace {

constexpr unsigned kMostBlocks = 8;

inline void cluster_begin(int line = __builtin_LINE()) { emulation::cluster_barrier("cluster_begin", line); }
inline void cluster_barrier(int line = __builtin_LINE()) { emulation::cluster_barrier("cluster_barrier", line); }

template <class X>
void put_in_block(X* shared, unsigned rank, const X& value) {
  std::memcpy(emulation::in_block(shared, rank), &value, sizeof(X));
}

// The order "reverse" stands for a device without clusters, so that both ways are run.
template <class... P>
bool has_clusters(void (*)(P...)) {
  return !emulation::in_reverse();
}

template <class... P>
cudaError_t launch_clusters(void (*kernel)(P...), dim3 grid, dim3 block, unsigned size, cudaStream_t, P... arguments) {
  if (size > kMostBlocks || grid.x % size) return cudaErrorInvalidConfiguration;
  emulation::run(grid, block, [&] { kernel(arguments...); }, size);
  return cudaGetLastError();
}

}  // namespace
}  // namespace curvext::cuda
