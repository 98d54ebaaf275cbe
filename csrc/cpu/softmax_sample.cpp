#include "../kernels.h"
#include "softmax.h"

namespace curvext::cpu {

at::Tensor softmax_sample(const at::Tensor& z, const at::Tensor& w, int64_t seed, int64_t draw, int64_t first,
                          int64_t dim) {
  dim = check_softmax("softmax_sample", z, w, dim);
  SoftmaxExtras extras;
  extras.draw = {seed, draw, first, positions_of_datum(w)};
  return swept(z, std::nullopt, w, dim, extras, [](const auto& ops) { return ops.sample; }).select(0, 0);
}

}  // namespace curvext::cpu
