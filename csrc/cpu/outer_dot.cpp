#include "../outer_dot.h"

#include "../kernels.h"
#include "rows.h"

namespace curvext::cpu {

at::Tensor outer_dot(const at::Tensor& a, const at::Tensor& g, const at::Tensor& W) {
  check_outer_dot("outer_dot", a, g, W);
  return outer_dot_by(a, g, W, kPieceBytes,
                      [](const at::Tensor& x, const at::Tensor& y, const at::Tensor& out) { add_dots(x, y, out); });
}

}  // namespace curvext::cpu
