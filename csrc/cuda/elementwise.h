#pragma once

#include "launch.h"
#include "widen.h"

// One pass over the outputs of a loss that acts on each alone: a thread for each output, neighbours in a warp.
namespace curvext::cuda {
namespace {

constexpr int kElementThreads = 256;

// out[k] = h u[k]; Loss::curvature(z, w) is h
template <class Loss, class S, class T>
__global__ void __launch_bounds__(kElementThreads) hessian_kernel(ElementLaunch l) {
  const int64_t i = int64_t(blockIdx.x) * kElementThreads + threadIdx.x;
  if (i >= l.count) return;
  const T w = static_cast<const T*>(l.w)[i * l.w_step];
  const T h = Loss::curvature(T(widened(static_cast<const S*>(l.z)[i])), w);
  for (int64_t k = 0; k < l.vectors; ++k) {
    const T u = widened(static_cast<const S*>(l.u)[k * l.count + i]);
    // a weight of zero silences the output whatever stands there
    narrow(w == 0 ? T(0) : h * u, static_cast<S*>(l.out) + k * l.count + i);
  }
}

// Loss::score(z, w, datum, position) is the residual at a drawn target
template <class Loss, class S, class T>
__global__ void __launch_bounds__(kElementThreads) sample_kernel(ElementLaunch l) {
  const int64_t i = int64_t(blockIdx.x) * kElementThreads + threadIdx.x;
  if (i >= l.count) return;
  const T w = static_cast<const T*>(l.w)[i * l.w_step], z = widened(static_cast<const S*>(l.z)[i]);
  const T score = Loss::score(z, w, l.draw.datum(i / l.draw.positions), uint64_t(i % l.draw.positions));
  narrow(w == 0 ? T(0) : score, static_cast<S*>(l.out) + i);
}

template <class Loss, bool Draws, class S, class T>
cudaError_t run(const ElementLaunch& l, cudaStream_t stream) {
  const unsigned blocks = unsigned((l.count + kElementThreads - 1) / kElementThreads);
  if constexpr (Draws) sample_kernel<Loss, S, T><<<blocks, kElementThreads, 0, stream>>>(l);
  else hessian_kernel<Loss, S, T><<<blocks, kElementThreads, 0, stream>>>(l);
  return cudaGetLastError();
}

template <class Loss, bool Draws>
cudaError_t each_element(const ElementLaunch& launch, cudaStream_t stream) {
  switch (launch.type) {
    case Type::float64: return run<Loss, Draws, double, double>(launch, stream);
    case Type::float32: return run<Loss, Draws, float, float>(launch, stream);
    case Type::bfloat16: return run<Loss, Draws, __nv_bfloat16, float>(launch, stream);
    default: return run<Loss, Draws, __half, float>(launch, stream);
  }
}

}  // namespace
}  // namespace curvext::cuda
