#include "launch.h"
#include "widen.h"

// h[n,s,o] = sum_v c[v,n] g[v,n,s,o]: the left operand of the product that cuBLAS adds to the result.
namespace curvext::cuda {
namespace {

constexpr int kThreads = 256;

template <class S, class T>
__global__ void __launch_bounds__(kThreads) weigh_kernel(WeighLaunch l) {
  const int64_t count = l.N * l.S * l.O;
  for (int64_t x = int64_t(blockIdx.x) * kThreads + threadIdx.x; x < count; x += int64_t(gridDim.x) * kThreads) {
    const int64_t o = x % l.O, s = x / l.O % l.S, n = x / l.O / l.S;
    const T* c = static_cast<const T*>(l.c) + n * l.c_sample;
    const S* g = static_cast<const S*>(l.g) + n * l.g_sample + s * l.g_position + o * l.g_feature;
    T sum = 0;
    for (int64_t v = 0; v < l.V; ++v) sum += c[v * l.c_vector] * widened(g[v * l.g_vector]);
    static_cast<T*>(l.h)[x] = sum;
  }
}

template <class S, class T>
cudaError_t run(const WeighLaunch& l, cudaStream_t stream) {
  const int64_t blocks = (l.N * l.S * l.O + kThreads - 1) / kThreads;
  if (blocks == 0) return cudaSuccess;
  weigh_kernel<S, T><<<unsigned(blocks < 65536 ? blocks : 65536), kThreads, 0, stream>>>(l);
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
