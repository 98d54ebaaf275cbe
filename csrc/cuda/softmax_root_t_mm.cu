#include "softmax_sweep.h"

namespace curvext::cuda {

cudaError_t softmax_root_t_mm(const SoftmaxLaunch& launch, cudaStream_t stream) {
  return sweep<Softmax::root_t>(launch, stream);
}

}  // namespace curvext::cuda
