#include "../kernels.h"
#include "elementwise.h"

namespace curvext::cpu {

at::Tensor mse_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w) {
  check_elements("mse_hessian_mm", z, w);
  check_vectors("mse_hessian_mm", z, "u", u);
  return each_element(z, u, w, {}, [](const auto& ops) { return ops.mse_hessian; });
}

}  // namespace curvext::cpu
