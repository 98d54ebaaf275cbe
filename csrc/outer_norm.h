#pragma once

#include <ATen/ops/zeros.h>

#include "outer_pieces.h"

// outer_norm on either device. add_dots(x, y, out) adds sum_sc x[r,s,c] y[r,s,c] to out[r].
namespace curvext {

// Whether the Gram matrices over the positions of a sample take fewer operations than its product.
inline bool gram_is_cheaper(int64_t V, int64_t S, int64_t I, int64_t O) { return S * (I + V * O) < V * O * I; }

template <class AddDots>
at::Tensor outer_norm_by(const at::Tensor& a, const at::Tensor& g, int64_t bytes, AddDots add_dots) {
  const int64_t V = g.size(0), N = a.size(0), S = a.size(1), I = a.size(2), O = g.size(3);
  const at::Tensor result = at::zeros({V, N}, wide_options(a));
  if (a.numel() == 0 || g.numel() == 0) return result;
  const int64_t values = piece_values(bytes, a);
  const auto part = [&](int64_t v, int64_t n, int64_t count) { return result.select(0, v).narrow(0, n, count); };
  const auto some_g = [&](int64_t v, int64_t n, int64_t count) { return wide(g.select(0, v).narrow(0, n, count)); };
  if (S == 1) {  // |g a^T|^2 = |g|^2 |a|^2
    for_pieces(N, values / std::max(I, O), [&](int64_t n, int64_t count) {
      const at::Tensor x = wide(a.narrow(0, n, count)), norm = at::zeros({count}, result.options());
      add_dots(x, x, norm);
      for (int64_t v = 0; v < V; ++v) {
        const at::Tensor y = some_g(v, n, count);
        add_dots(y, y, part(v, n, count));
        part(v, n, count).mul_(norm);
      }
    });
  } else if (gram_is_cheaper(V, S, I, O) && 2 * S * S <= values) {  // sum_st <a_s, a_t> <g_s, g_t>
    const int64_t widened = a.scalar_type() == result.scalar_type() ? 0 : I + O;
    for_pieces(N, values / (S * (2 * S + widened)), [&](int64_t n, int64_t count) {
      const at::Tensor x = wide(a.narrow(0, n, count)), products = x.bmm(x.mT());
      for (int64_t v = 0; v < V; ++v) {
        const at::Tensor y = some_g(v, n, count);
        add_dots(products, y.bmm(y.mT()), part(v, n, count));
      }
    });
  } else {
    for_gradients(a, g, values, O * I,
                  [&](int64_t v, int64_t n, int64_t count, int64_t, int64_t, const at::Tensor& gradients) {
                    add_dots(gradients, gradients, part(v, n, count));
                  });
  }
  return result;
}

}  // namespace curvext
