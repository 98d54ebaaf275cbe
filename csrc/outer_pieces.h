#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "checks.h"

// How the kernels around G_vn cut their work on either device: plain products (at::mm, at::bmm) on pieces small enough
// for the cache, and after each one a fused pass that takes it in. A device gives the bytes of a piece and the pass.
namespace curvext {

// Calls visit(begin, count) for the pieces of an extent, in order.
template <class Visit>
void for_pieces(int64_t extent, int64_t piece, Visit visit) {
  piece = std::max<int64_t>(piece, 1);
  for (int64_t begin = 0; begin < extent; begin += piece) visit(begin, std::min(piece, extent - begin));
}

// The type that sums are formed in; no copy where the tensor has it.
inline at::Tensor wide(const at::Tensor& tensor) { return tensor.to(accumulation_type(tensor.scalar_type())); }

inline at::TensorOptions wide_options(const at::Tensor& tensor) {
  return tensor.options().dtype(accumulation_type(tensor.scalar_type()));
}

// Values of the accumulation type of `tensor` that a piece holds.
inline int64_t piece_values(int64_t bytes, const at::Tensor& tensor) {
  return bytes / (accumulation_type(tensor.scalar_type()) == at::kDouble ? 8 : 4);
}

// Calls visit(n, count, s, positions) for runs of at most `rows` pairs (n, s): several whole samples, or where one is
// longer than that, parts of it.
template <class Visit>
void for_positions(int64_t N, int64_t S, int64_t rows, Visit visit) {
  for_pieces(N, rows / S, [&](int64_t n, int64_t count) {
    for_pieces(S, rows, [&](int64_t s, int64_t positions) { visit(n, count, s, positions); });
  });
}

// Rows of W or of the result that one product takes: enough for a GEMM, few enough that its piece has many positions.
constexpr int64_t kBandRows = 1024;
// Features of the gradients that one product with K vectors takes at least.
constexpr int64_t kBandFeatures = 8192;

// Whether K products with G_vn cost less when it is formed, V N (S + K) O I, than position by position, K N S O I.
inline bool forms_gradients(int64_t V, int64_t S, int64_t K) { return V * (S + K) < K * S; }

// G_n = sum_s g_ns a_ns^T of every n for a [N,S,I] and g [N,S,O]; a and g are widened piece by piece of s.
inline at::Tensor form_gradients(const at::Tensor& a, const at::Tensor& g, int64_t values) {
  const int64_t S = a.size(1), I = a.size(2), O = g.size(2);
  const bool is_wide = a.scalar_type() == accumulation_type(a.scalar_type());
  const int64_t piece = is_wide ? S : values / std::max<int64_t>(1, a.size(0) * (I + O));
  at::Tensor gradients;
  for_pieces(S, piece, [&](int64_t s, int64_t count) {
    const at::Tensor left = wide(g.narrow(1, s, count)).mT(), right = wide(a.narrow(1, s, count));
    if (s == 0) gradients = left.bmm(right);
    else gradients.baddbmm_(left, right);
  });
  return gradients;
}

// Calls visit(v, n, count, o, rows, G) for the gradients [count, rows, I] of every run of samples and band of rows of
// G; a band has at least `least` features where G has as many.
template <class Visit>
void for_gradients(const at::Tensor& a, const at::Tensor& g, int64_t values, int64_t least, Visit visit) {
  const int64_t N = a.size(0), I = a.size(2), O = g.size(3);
  const int64_t band = std::clamp<int64_t>(std::max(values / N, least) / I, 1, O);
  for_pieces(N, values / (band * I), [&](int64_t n, int64_t count) {
    for_pieces(O, band, [&](int64_t o, int64_t rows) {
      for (int64_t v = 0; v < g.size(0); ++v)
        visit(v, n, count, o, rows,
              form_gradients(a.narrow(0, n, count), g.select(0, v).narrow(0, n, count).narrow(2, o, rows), values));
    });
  });
}

}  // namespace curvext
