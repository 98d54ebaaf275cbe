#include "../kernels.h"
#include "softmax.h"

namespace curvext::cpu {

at::Tensor softmax_root_mm(const at::Tensor& z, const at::Tensor& v, const at::Tensor& w, int64_t dim) {
  dim = check_softmax("softmax_root_mm", z, w, dim);
  check_vectors("softmax_root_mm", z, "v", v);
  return swept(z, v, w, dim, {}, [](const auto& ops) { return ops.root; });
}

}  // namespace curvext::cpu
