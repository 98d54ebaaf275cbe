#include "../kernels.h"
#include "softmax.h"

namespace curvext::cpu {

at::Tensor softmax_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w, int64_t dim) {
  dim = check_softmax("softmax_hessian_mm", z, w, dim);
  check_vectors("softmax_hessian_mm", z, "u", u);
  return swept(z, u, w, dim, {}, [](const auto& ops) { return ops.hessian; });
}

}  // namespace curvext::cpu
