#include "elementwise.h"

namespace curvext::cuda {
namespace {

// w p (1 - p) by e^-|z|, which keeps it far from zero
struct SigmoidHessian {
  template <class T>
  __device__ static T curvature(T z, T w) {
    const T e = exponential(z < 0 ? z : -z);
    return w * (e / ((1 + e) * (1 + e)));
  }
};

}  // namespace

cudaError_t sigmoid_hessian_mm(const ElementLaunch& launch, cudaStream_t stream) {
  return each_element<SigmoidHessian, false>(launch, stream);
}

}  // namespace curvext::cuda
