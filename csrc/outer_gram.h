#pragma once

#include <ATen/ops/zeros.h>

#include <cmath>

#include "outer_pieces.h"

// outer_gram on either device. add_pairs(p, q, out) adds sum_st p[n,s,m,t] q[n,s,m,t] to out[n,m].
namespace curvext {

template <class AddPairs>
at::Tensor outer_gram_by(const at::Tensor& a, const at::Tensor& g, const at::Tensor& a2, const at::Tensor& g2,
                         int64_t bytes, AddPairs add_pairs) {
  const int64_t N = a.size(0), S = a.size(1), I = a.size(2), O = g.size(2), N2 = a2.size(0), S2 = a2.size(1);
  const at::Tensor result = at::zeros({N, N2}, wide_options(a));
  if (a.numel() == 0 || g.numel() == 0 || a2.numel() == 0 || g2.numel() == 0) return result;
  const int64_t values = piece_values(bytes, a);
  const double by_pairs = double(N * S) * double(N2 * S2) * double(I + O);
  const double by_gradients = double(N * S + N2 * S2 + N * N2) * double(O * I);
  const auto block = [&](int64_t n, int64_t count, int64_t m, int64_t count2) {
    return result.narrow(0, n, count).narrow(1, m, count2);
  };
  if (by_pairs < by_gradients) {  // sum_st <a_s, a'_t> <g_s, g'_t>
    const int64_t rows = std::max<int64_t>(1, int64_t(std::sqrt(double(values))));
    const auto some = [](const at::Tensor& x, int64_t n, int64_t count, int64_t s, int64_t positions) {
      return wide(x.narrow(0, n, count).narrow(1, s, positions)).reshape({count * positions, x.size(2)});
    };
    for_positions(N, S, rows, [&](int64_t n, int64_t count, int64_t s, int64_t positions) {
      const at::Tensor x = some(a, n, count, s, positions), y = some(g, n, count, s, positions);
      for_positions(N2, S2, rows, [&](int64_t m, int64_t count2, int64_t t, int64_t positions2) {
        const at::Tensor p = x.mm(some(a2, m, count2, t, positions2).t());
        const at::Tensor q = y.mm(some(g2, m, count2, t, positions2).t());
        add_pairs(p.view({count, positions, count2, positions2}), q.view({count, positions, count2, positions2}),
                  block(n, count, m, count2));
      });
    });
    return result;
  }
  // Bands of rows of G and G', of which no other value is needed.
  const int64_t band = std::clamp<int64_t>(std::max(values / std::max(N, N2), kBandFeatures) / I, 1, O);
  const int64_t samples = std::max<int64_t>(1, values / (band * I));
  for_pieces(O, band, [&](int64_t o, int64_t rows) {
    for_pieces(N, samples, [&](int64_t n, int64_t count) {
      const at::Tensor left = form_gradients(a.narrow(0, n, count), g.narrow(0, n, count).narrow(2, o, rows), values);
      for_pieces(N2, samples, [&](int64_t m, int64_t count2) {
        const at::Tensor right =
            form_gradients(a2.narrow(0, m, count2), g2.narrow(0, m, count2).narrow(2, o, rows), values);
        block(n, count, m, count2).addmm_(left.flatten(1), right.flatten(1).t());
      });
    });
  });
  return result;
}

}  // namespace curvext
