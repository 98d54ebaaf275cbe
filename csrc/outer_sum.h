#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "outer_pieces.h"

// outer_sum on either device. weigh(c, g, h) writes h[n,s,o] = sum_v c[v,n] g[v,n,s,o]; c and h are wide, g as stored.
// add_product(x, y, out, first) adds x^T y to out, or writes it there first; out is [O,I] or the transpose of [I,O].
namespace curvext {

// result[k] = sum_n h_kn^T a_n
template <class Weigh, class AddProduct>
void sum_weighed(const at::Tensor& a, const at::Tensor& g, const at::Tensor& weights, int64_t values,
                 const at::Tensor& result, Weigh weigh, AddProduct add_product) {
  const int64_t N = a.size(0), S = a.size(1), I = a.size(2), O = g.size(3), K = weights.size(0);
  const int64_t band = std::min(O, kBandRows);
  for_pieces(O, band, [&](int64_t o, int64_t rows) {
    for_positions(N, S, values / band, [&](int64_t n, int64_t count, int64_t s, int64_t positions) {
      const at::Tensor x = wide(a.narrow(0, n, count).narrow(1, s, positions)).reshape({count * positions, I});
      const at::Tensor some = g.narrow(1, n, count).narrow(2, s, positions).narrow(3, o, rows);
      const at::Tensor weighed = at::empty({count, positions, rows}, result.options());
      for (int64_t k = 0; k < K; ++k) {
        weigh(weights.select(0, k).narrow(1, n, count), some, weighed);
        add_product(weighed.view({count * positions, rows}), x, result.select(0, k).narrow(0, o, rows),
                    n == 0 && s == 0);
      }
    });
  });
}

template <class Weigh, class AddProduct>
at::Tensor outer_sum_by(const at::Tensor& a, const at::Tensor& g, const at::Tensor& c, int64_t bytes, Weigh weigh,
                        AddProduct add_product) {
  const int64_t V = g.size(0), S = a.size(1), I = a.size(2), O = g.size(3), K = c.size(0);
  const bool empty = a.numel() == 0 || g.numel() == 0 || c.numel() == 0, forms = forms_gradients(V, S, K);
  const at::Tensor result =
      empty || forms ? at::zeros({K, O, I}, wide_options(a)) : at::empty({K, O, I}, wide_options(a));
  if (empty) return result;
  const int64_t values = piece_values(bytes, a);
  const at::Tensor weights = wide(c);
  if (forms)  // c_k times G, the result written once
    for_gradients(
        a, g, values, std::max(kBandFeatures, K),
        [&](int64_t v, int64_t n, int64_t count, int64_t o, int64_t rows, const at::Tensor& gradients) {
          result.narrow(1, o, rows).flatten(1).addmm_(weights.select(1, v).narrow(1, n, count), gradients.flatten(1));
        });
  else if (V == 1 && I < O)  // the narrower of the two is weighed
    sum_weighed(g.select(0, 0), a.unsqueeze(0), weights, values, result.mT(), weigh, add_product);
  else sum_weighed(a, g, weights, values, result, weigh, add_product);
  return result;
}

}  // namespace curvext
