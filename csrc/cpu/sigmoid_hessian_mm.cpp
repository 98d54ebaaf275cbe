#include "../kernels.h"
#include "elementwise.h"

namespace curvext::cpu {

at::Tensor sigmoid_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w) {
  check_elements("sigmoid_hessian_mm", z, w);
  check_vectors("sigmoid_hessian_mm", z, "u", u);
  return each_element(z, u, w, {}, [](const auto& ops) { return ops.sigmoid_hessian; });
}

}  // namespace curvext::cpu
