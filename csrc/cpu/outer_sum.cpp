#include "../outer_sum.h"

#include <ATen/ops/mm.h>

#include "../kernels.h"
#include "outer_tiles.h"
#include "rows.h"

namespace curvext::cpu {
namespace {

// h[n,s,o] = sum_v c[v,n] g[v,n,s,o], h contiguous
void weigh(const at::Tensor& c, const at::Tensor& g, const at::Tensor& h) {
  const at::Tensor rows = unit_columns(g);
  const int64_t V = rows.size(0), S = rows.size(2), O = rows.size(3);
  with_row_ops(rows, [&](const auto& ops, const auto* values) {
    using T = decltype(ops.dot(0, nullptr, nullptr));
    const T* weights = c.const_data_ptr<T>();
    T* out = h.data_ptr<T>();
    const int64_t grain = std::max<int64_t>(1, kRowGrain / (V * O));
    at::parallel_for(0, rows.size(1) * S, grain, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t n = at / S, s = at % S;
        for (int64_t v = 0; v < V; ++v)
          ops.scale(v > 0, O, weights[v * c.stride(0) + n * c.stride(1)],
                    values + v * rows.stride(0) + n * rows.stride(1) + s * rows.stride(2), out + at * O);
      }
    });
  });
}

// out = x^T y or out += x^T y
void add_product(const at::Tensor& x, const at::Tensor& y, at::Tensor out, bool first) {
  if (!products_by_tiles()) {
    if (first) at::mm_out(out, x.t(), y);
    else out.addmm_(x.t(), y);
    return;
  }
  const bool by_rows = out.stride(1) == 1;
  const at::Tensor &left = by_rows ? x : y, &right = by_rows ? y : x, here = by_rows ? out : out.t();
  if (first) product_by_tiles(left, right, here);
  else here.add_(product_by_tiles(left, right));
}

}  // namespace

at::Tensor outer_sum(const at::Tensor& a, const at::Tensor& g, const at::Tensor& c) {
  check_outer_sum("outer_sum", a, g, c);
  return outer_sum_by(a, g, c, piece_bytes(), weigh, add_product);
}

}  // namespace curvext::cpu
