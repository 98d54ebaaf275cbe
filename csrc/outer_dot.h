#pragma once

#include <ATen/ops/zeros.h>

#include "outer_pieces.h"

// outer_dot on either device. add_dots(x, y, out) adds sum_sc x[r,s,c] y[r,s,c] to out[r]; y may be narrow.
namespace curvext {

template <class AddDots>
at::Tensor outer_dot_by(const at::Tensor& a, const at::Tensor& g, const at::Tensor& W, int64_t bytes,
                        AddDots add_dots) {
  const int64_t V = g.size(0), N = a.size(0), S = a.size(1), I = a.size(2), O = g.size(3), K = W.size(0);
  const bool forms = forms_gradients(V, S, K);
  if (V == 1 && I < O && !forms)  // sum_s <W a_s, g_s> = sum_s <W^T g_s, a_s>, which has the shorter images
    return outer_dot_by(g.select(0, 0), a.unsqueeze(0), W.mT(), bytes, add_dots);
  const at::Tensor result = at::zeros({V, N, K}, wide_options(a));
  if (a.numel() == 0 || g.numel() == 0 || W.numel() == 0) return result;
  const int64_t values = piece_values(bytes, a);
  if (forms) {  // <G_vn, W_k>, W read once
    for_gradients(a, g, values, std::max(kBandFeatures, K),
                  [&](int64_t v, int64_t n, int64_t count, int64_t o, int64_t rows, const at::Tensor& gradients) {
                    const at::Tensor band = wide(W.narrow(1, o, rows)).flatten(1);
                    result.select(0, v).narrow(0, n, count).addmm_(gradients.flatten(1), band.t());
                  });
    return result;
  }
  const int64_t band = std::min(O, kBandRows);
  for_pieces(O, band, [&](int64_t o, int64_t rows) {
    for_positions(N, S, values / band, [&](int64_t n, int64_t count, int64_t s, int64_t positions) {
      const at::Tensor x = wide(a.narrow(0, n, count).narrow(1, s, positions)).reshape({count * positions, I});
      for (int64_t k = 0; k < K; ++k) {
        const at::Tensor images = x.mm(wide(W.select(0, k).narrow(0, o, rows)).t()).view({count, positions, rows});
        for (int64_t v = 0; v < V; ++v)  // sum_s <W a_s, g_s>
          add_dots(images, g.select(0, v).narrow(0, n, count).narrow(1, s, positions).narrow(2, o, rows),
                   result.select(0, v).narrow(0, n, count).select(1, k));
      }
    });
  });
  return result;
}

}  // namespace curvext
