#include "add_dots.h"

// The pass over the images W a that cuBLAS has formed; g is read as it is stored.
namespace curvext::cuda {

cudaError_t outer_dot(const DotsLaunch& launch, cudaStream_t stream) {
  switch (launch.type) {
    case Type::float64: return add_dots<double, double>(launch, stream);
    case Type::float32: return add_dots<float, float>(launch, stream);
    case Type::bfloat16: return add_dots<__nv_bfloat16, float>(launch, stream);
    default: return add_dots<__half, float>(launch, stream);
  }
}

}  // namespace curvext::cuda
