#include "elementwise.h"

namespace curvext::cuda {
namespace {

struct MseHessian {
  template <class T>
  __device__ static T curvature(T, T w) {
    return w + w;
  }
};

}  // namespace

cudaError_t mse_hessian_mm(const ElementLaunch& launch, cudaStream_t stream) {
  return each_element<MseHessian, false>(launch, stream);
}

}  // namespace curvext::cuda
