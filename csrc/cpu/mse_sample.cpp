#include "../kernels.h"
#include "elementwise.h"

namespace curvext::cpu {

at::Tensor mse_sample(const at::Tensor& z, const at::Tensor& w, int64_t seed, int64_t draw, int64_t first) {
  check_elements("mse_sample", z, w);
  const Draw draws{seed, draw, first, positions_of_datum(z)};
  return each_element(z, at::Tensor(), w, draws, [](const auto& ops) { return ops.mse_sample; });
}

}  // namespace curvext::cpu
