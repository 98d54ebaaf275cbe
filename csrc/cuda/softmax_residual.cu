#include "softmax_sweep.h"

namespace curvext::cuda {

cudaError_t softmax_residual(const SoftmaxLaunch& launch, cudaStream_t stream) {
  return launch.args.u ? sweep<Softmax::mass_residual>(launch, stream) : sweep<Softmax::residual>(launch, stream);
}

}  // namespace curvext::cuda
