#include "../outer_dot.h"

#include "../kernels.h"
#include "outer_tiles.h"
#include "rows.h"

namespace curvext::cpu {
namespace {

// sum_s <a_s, W^T g_s> for g [1,N,S,O], position by position: the tiles' product contracts the rows of W, which lie as
// they are packed.
at::Tensor dot_by_tiles(const at::Tensor& a, const at::Tensor& g, const at::Tensor& W) {
  const int64_t N = a.size(0), S = a.size(1), I = a.size(2), O = g.size(3), K = W.size(0);
  const at::Tensor result = at::zeros({1, N, K}, wide_options(a));
  for_positions(N, S, piece_values(piece_bytes(), a) / std::max(I, O),
                [&](int64_t n, int64_t count, int64_t s, int64_t positions) {
                  const at::Tensor some = g.select(0, 0).narrow(0, n, count).narrow(1, s, positions);
                  const at::Tensor turned = wide(some).reshape({count * positions, O}).t().contiguous();
                  for (int64_t k = 0; k < K; ++k)
                    add_dots(product_by_tiles(turned, wide(W.select(0, k))).view({count, positions, I}),
                             a.narrow(0, n, count).narrow(1, s, positions),
                             result.select(0, 0).narrow(0, n, count).select(1, k));
                });
  return result;
}

}  // namespace

at::Tensor outer_dot(const at::Tensor& a, const at::Tensor& g, const at::Tensor& W) {
  check_outer_dot("outer_dot", a, g, W);
  const bool empty = a.numel() == 0 || g.numel() == 0 || W.numel() == 0;
  if (products_by_tiles() && !empty && g.size(0) == 1 && !forms_gradients(1, a.size(1), W.size(0)))
    return dot_by_tiles(a, g, W);
  return outer_dot_by(a, g, W, piece_bytes(),
                      [](const at::Tensor& x, const at::Tensor& y, const at::Tensor& out) { add_dots(x, y, out); });
}

}  // namespace curvext::cpu
