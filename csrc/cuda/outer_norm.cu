#include "add_dots.h"

// The pass over what cuBLAS has formed: inner products of positions, or gradients.
namespace curvext::cuda {

cudaError_t outer_norm(const DotsLaunch& launch, cudaStream_t stream) {
  return launch.type == Type::float64 ? add_dots<double, double>(launch, stream)
                                      : add_dots<float, float>(launch, stream);
}

}  // namespace curvext::cuda
