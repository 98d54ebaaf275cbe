#pragma once

#include "softmax_columns.h"
#include "softmax_rows.h"

// Which sweep a launch takes.
namespace curvext::cuda {
namespace {

// Classes are counted in int, with room for what a block steps beyond the last.
constexpr int64_t kMostClasses = INT32_MAX - (1 << 20);

template <Softmax kind, class S, class T>
cudaError_t run(const SoftmaxLaunch& l, cudaStream_t stream) {
  const SoftmaxArgs<S, T> p = l.args.as<S, T>();
  if (p.classes > kMostClasses) return cudaErrorInvalidValue;
  return p.inner > 1 ? run_columns<kind>(p, stream) : run_rows<kind>(p, stream);
}

template <Softmax kind>
cudaError_t sweep(const SoftmaxLaunch& launch, cudaStream_t stream) {
  switch (launch.type) {
    case Type::float64: return run<kind, double, double>(launch, stream);
    case Type::float32: return run<kind, float, float>(launch, stream);
    case Type::bfloat16: return run<kind, __nv_bfloat16, float>(launch, stream);
    default: return run<kind, __half, float>(launch, stream);
  }
}

}  // namespace
}  // namespace curvext::cuda
