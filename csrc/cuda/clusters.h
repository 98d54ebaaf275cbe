#pragma once

#include <cuda_runtime.h>

// Blocks that run at the same time and reach each other's shared memory, from sm_90 on. tools/emulation has a double of
// this file.
namespace curvext::cuda {
namespace {

constexpr unsigned kMostBlocks = 8;  // of a cluster; 16 would need the permission of each kernel

// Waits until all threads of the cluster have begun: before that their shared memory must not be written.
__device__ inline void cluster_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// Waits for all threads of the cluster; what they wrote to shared memory before is seen after.
__device__ inline void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Writes to the place that `shared`, an address in this block, has in the block of that rank.
template <class X>
__device__ void put_in_block(X* shared, unsigned rank, const X& value) {
#if __CUDA_ARCH__ >= 900
  static_assert(sizeof(X) % 4 == 0);
  unsigned words[sizeof(X) / 4], address;
  memcpy(words, &value, sizeof(X));
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(unsigned(__cvta_generic_to_shared(shared))), "r"(rank));
#pragma unroll
  for (unsigned i = 0; i < sizeof(X) / 4; ++i)
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address + 4 * i), "r"(words[i]) : "memory");
#endif
}

// Whether the code of a kernel that runs on this device knows clusters; one compiled for an older one does not.
template <class... P>
bool has_clusters(void (*kernel)(P...)) {
  cudaFuncAttributes found;
  return cudaFuncGetAttributes(&found, reinterpret_cast<const void*>(kernel)) == cudaSuccess && found.ptxVersion >= 90;
}

// Launches clusters of neighbours along x.
template <class... P>
cudaError_t launch_clusters(void (*kernel)(P...), dim3 grid, dim3 block, unsigned size, cudaStream_t stream,
                            P... arguments) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = size;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t configuration{};
  configuration.gridDim = grid;
  configuration.blockDim = block;
  configuration.stream = stream;
  configuration.attrs = &cluster;
  configuration.numAttrs = 1;
  return cudaLaunchKernelEx(&configuration, kernel, arguments...);
}

}  // namespace
}  // namespace curvext::cuda
