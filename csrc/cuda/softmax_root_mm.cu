#include "softmax_sweep.h"

namespace curvext::cuda {

cudaError_t softmax_root_mm(const SoftmaxLaunch& launch, cudaStream_t stream) {
  return sweep<Softmax::root>(launch, stream);
}

}  // namespace curvext::cuda
