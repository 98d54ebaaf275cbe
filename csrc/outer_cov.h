#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "outer_pieces.h"
#include "workspace.h"

// outer_cov on either device: plain products of `tile` columns of x with all that are not to their left, so that what
// lies under the diagonal is made in the tiles on it alone; then mirror(out) copies the upper triangle to the lower.
namespace curvext {

// The bytes of a piece of rows: `own`, or 512 rows, as each piece reads and writes the result once.
inline int64_t cov_bytes(const at::Tensor& x, int64_t own) {
  const int64_t row = x.size(1) * (accumulation_type(x.scalar_type()) == at::kDouble ? 8 : 4);
  return workspace_bytes(std::max(own, 512 * row));
}

template <class Mirror>
at::Tensor outer_cov_by(const at::Tensor& x, const at::Tensor& w, int64_t bytes, int64_t tile, Mirror mirror) {
  const int64_t M = x.size(0), D = x.size(1);
  if (M == 0 || D == 0) return at::zeros({D, D}, wide_options(x));
  const at::Tensor result = at::empty({D, D}, wide_options(x)), weights = wide(w);
  for_pieces(M, piece_values(bytes, x) / D, [&](int64_t m, int64_t count) {
    const at::Tensor left = wide(x.narrow(0, m, count));
    const at::Tensor right = left.mul(weights.narrow(0, m, count).unsqueeze(1));
    for_pieces(D, tile, [&](int64_t d, int64_t width) {
      at::Tensor out = result.narrow(0, d, width).narrow(1, d, D - d);
      const at::Tensor a = left.narrow(1, d, width).t(), b = right.narrow(1, d, D - d);
      if (m == 0) at::mm_out(out, a, b);
      else out.addmm_(a, b);
    });
  });
  mirror(result);
  return result;
}

}  // namespace curvext
