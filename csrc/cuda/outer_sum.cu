#include "launch.h"
#include "widen.h"

// h[n,s,o] = sum_v c[v,n] g[v,n,s,o]: the left operand of the product that cuBLAS adds to the result.
namespace curvext::cuda {
namespace {

constexpr int kAcross = 32, kDown = 8;

// A warp takes a row (n, s) at a time, so that the division is one for the row. h is a piece of the workspace: int
// counts its rows.
template <class S, class T>
__global__ void __launch_bounds__(kAcross* kDown) weigh_kernel(WeighLaunch l) {
  const int rows = int(l.N * l.S), S_ = int(l.S);
  for (int row = int(blockIdx.x) * kDown + int(threadIdx.y); row < rows; row += int(gridDim.x) * kDown) {
    const int n = row / S_, s = row - n * S_;
    const T* c = static_cast<const T*>(l.c) + n * l.c_sample;
    const S* g = static_cast<const S*>(l.g) + n * l.g_sample + s * l.g_position;
    T* h = static_cast<T*>(l.h) + row * l.O;
    for (int64_t o = threadIdx.x; o < l.O; o += kAcross) {
      T sum = 0;
      for (int64_t v = 0; v < l.V; ++v) sum += c[v * l.c_vector] * widened(g[v * l.g_vector + o * l.g_feature]);
      h[o] = sum;
    }
  }
}

template <class S, class T>
cudaError_t run(const WeighLaunch& l, cudaStream_t stream) {
  const int64_t blocks = (l.N * l.S + kDown - 1) / kDown;
  if (blocks == 0 || l.O == 0) return cudaSuccess;
  if (l.N * l.S > INT32_MAX - (1 << 24)) return cudaErrorInvalidValue;
  weigh_kernel<S, T><<<unsigned(blocks < 65536 ? blocks : 65536), dim3(kAcross, kDown), 0, stream>>>(l);
  return cudaGetLastError();
}

}  // namespace

cudaError_t outer_sum(const WeighLaunch& launch, cudaStream_t stream) {
  switch (launch.type) {
    case Type::float64: return run<double, double>(launch, stream);
    case Type::float32: return run<float, float>(launch, stream);
    case Type::bfloat16: return run<__nv_bfloat16, float>(launch, stream);
    default: return run<__half, float>(launch, stream);
  }
}

}  // namespace curvext::cuda
