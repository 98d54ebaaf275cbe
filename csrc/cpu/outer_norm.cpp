#include "../outer_norm.h"

#include "../kernels.h"
#include "rows.h"

namespace curvext::cpu {

at::Tensor outer_norm(const at::Tensor& a, const at::Tensor& g) {
  check_outer_pair("outer_norm", a, g);
  return outer_norm_by(a, g, kPieceBytes,
                       [](const at::Tensor& x, const at::Tensor& y, const at::Tensor& out) { add_dots(x, y, out); });
}

}  // namespace curvext::cpu
