#include <ATen/ops/addcmul.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../checks.h"
#include "../kernels.h"
#include "../workspace.h"
#include "isa.h"
#include "outer_tiles.h"

namespace curvext::cpu {
namespace {

constexpr int64_t kSquaresBytes = int64_t(4) << 20;  // stays in the last-level cache

// S = 1: (g a)^2 = g^2 a^2, so the sum over v and n is one product of squares contracted over n, and that is mostly the
// library GEMM's own ground. The squares are taken of as many samples as fit the workspace.
at::Tensor square_folded(const at::Tensor& a, const at::Tensor& g) {
  const int64_t N = a.size(0), I = a.size(2), O = g.size(3);
  const auto type = accumulation_type(a.scalar_type());
  const int64_t row_bytes = (I + O * std::min<int64_t>(g.size(0), 2)) * at::elementSize(type);
  const int64_t step = std::max<int64_t>(1, workspace_bytes(kSquaresBytes) / std::max<int64_t>(1, row_bytes));
  if (N == 0 || g.size(0) == 0) return at::zeros({O, I}, a.options().dtype(type));
  at::Tensor result = at::empty({O, I}, a.options().dtype(type));
  at::Tensor a2 = at::empty({std::min(step, N), I}, result.options());
  at::Tensor g2 = at::empty({std::min(step, N), O}, result.options());
  for (int64_t n = 0; n < N; n += step) {
    const int64_t count = std::min(step, N - n);
    at::Tensor x2 = a2.narrow(0, 0, count), y2 = g2.narrow(0, 0, count);
    const at::Tensor x = a.narrow(0, n, count).select(1, 0).to(type);
    at::mul_out(x2, x, x);
    for (int64_t v = 0; v < g.size(0); ++v) {
      const at::Tensor y = g.select(0, v).narrow(0, n, count).select(1, 0).to(type);
      if (v == 0) at::mul_out(y2, y, y);
      else y2.addcmul_(y, y);
    }
    if (n == 0) at::mm_out(result, y2.t(), x2);
    else result.addmm_(y2.t(), x2);
  }
  return result;
}

}  // namespace

at::Tensor outer_square(const at::Tensor& a, const at::Tensor& g) {
  check_outer_windows("outer_square", a, g);
  const bool by_tiles = g.size(0) == 1 && products_by_tiles();  // several vectors fold into one before the product
  if (g.size(2) == 1 && !by_tiles) return square_folded(without_windows(a), g);
  const Primitives& level = primitives();
  const at::Tensor x = unit_columns(a), y = unit_columns_or_rows(g);
  switch (a.scalar_type()) {
    case at::kDouble: return sum_by_tiles<true, double, double>(x, y, level.tile_double, level.pack_double);
    case at::kFloat: return sum_by_tiles<true, float, float>(x, y, level.tile_float, level.pack_float);
    case at::kBFloat16: return sum_by_tiles<true, BFloat16, float>(x, y, level.tile_float, level.pack_bfloat16);
    default: return sum_by_tiles<true, Float16, float>(x, y, level.tile_float, level.pack_float16);
  }
}

}  // namespace curvext::cpu
