#include "launch.h"

// out[i,j] = out[j,i] for j < i, after cuBLAS has made the upper triangle: tiles turned round in shared memory, so that
// both are read and written along their rows.
namespace curvext::cuda {
namespace {

constexpr int kTile = 32, kRows = 8;

template <class T>
__global__ void __launch_bounds__(kTile* kRows) mirror_kernel(MirrorLaunch l) {
  __shared__ T tile[kTile][kTile + 1];
  const int64_t row = int64_t(blockIdx.y) * kTile, column = int64_t(blockIdx.x) * kTile;
  if (column > row) return;  // the whole block: its tile lies above the diagonal
  T* out = static_cast<T*>(l.out);
  for (int r = threadIdx.y; r < kTile; r += kRows) {
    const int64_t i = column + r, j = row + threadIdx.x;
    if (i < l.D && j < l.D) tile[r][threadIdx.x] = out[i * l.D + j];
  }
  __syncthreads();
  for (int r = threadIdx.y; r < kTile; r += kRows) {
    const int64_t i = row + r, j = column + threadIdx.x;
    if (i < l.D && j < i) out[i * l.D + j] = tile[threadIdx.x][r];
  }
}

template <class T>
cudaError_t run(const MirrorLaunch& l, cudaStream_t stream) {
  const unsigned tiles = unsigned((l.D + kTile - 1) / kTile);
  if (tiles == 0) return cudaSuccess;
  mirror_kernel<T><<<dim3(tiles, tiles), dim3(kTile, kRows), 0, stream>>>(l);
  return cudaGetLastError();
}

}  // namespace

cudaError_t outer_cov(const MirrorLaunch& launch, cudaStream_t stream) {
  return launch.type == Type::float64 ? run<double>(launch, stream) : run<float>(launch, stream);
}

}  // namespace curvext::cuda
