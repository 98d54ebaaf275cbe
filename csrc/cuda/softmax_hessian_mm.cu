#include "softmax_sweep.h"

namespace curvext::cuda {

cudaError_t softmax_hessian_mm(const SoftmaxLaunch& launch, cudaStream_t stream) {
  return sweep<Softmax::hessian>(launch, stream);
}

}  // namespace curvext::cuda
