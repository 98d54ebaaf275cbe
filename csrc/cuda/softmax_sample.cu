#include "softmax_sweep.h"

namespace curvext::cuda {

cudaError_t softmax_sample(const SoftmaxLaunch& launch, cudaStream_t stream) {
  return sweep<Softmax::sample>(launch, stream);
}

}  // namespace curvext::cuda
