#include "../outer_norm.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../kernels.h"
#include "outer_panels.h"
#include "rows.h"

namespace curvext::cpu {
namespace {

// Squares that are summed in the accumulation type before the sum goes on in double.
constexpr int64_t kSummedAtOnce = 4096;

// The squares of windows' products are summed in registers. Threads share out the samples, so that each norm is summed
// by one of them, block after block.
template <class S, class T>
at::Tensor norm_of_windows(const at::Tensor& a, const at::Tensor& g, const TileOps<T>& ops, PackOps<S, T> pack,
                           const RowOps<T, T>& rows) {
  const auto pair = outer_pair<S>(a, g);
  const int64_t O = g.size(3), I = a.size(3) * a.size(4), N = pair.samples;
  at::Tensor result = at::zeros({pair.vectors, N}, wide_options(a));
  if (a.numel() == 0 || g.numel() == 0) return result;
  T* out = result.data_ptr<T>();
  const int64_t share = std::max<int64_t>(1, kPanelRows / pair.positions);
  at::parallel_for(0, (N + share - 1) / share, 1, [&](int64_t first, int64_t last) {
    std::vector<double> norms(size_t(pair.vectors * N));
    const int64_t begin = first * share, end = std::min(N, last * share);
    for (int64_t o = 0; o < O; o += kBlockRows)
      for (int64_t i = 0; i < I; i += kBlockColumns) {
        PanelProducts<S, T> products(pair, ops, pack,
                                     {o, std::min(kBlockRows, O - o), i, std::min(kBlockColumns, I - i)});
        products.over(
            begin, end,
            [&](int64_t v, int64_t n, int64_t samples, const T* left, const T* right, int64_t) {
              ops.add_norm(samples, pair.positions, left, right, norms.data() + v * N + n);
            },
            [&](int64_t v, int64_t n, const T* values) {
              for_pieces(products.tile_values(), kSummedAtOnce, [&](int64_t k, int64_t count) {
                norms[size_t(v * N + n)] += double(rows.dot(count, values + k, values + k));
              });
            });
      }
    for (int64_t v = 0; v < pair.vectors; ++v)
      for (int64_t n = begin; n < end; ++n) out[v * N + n] = T(norms[size_t(v * N + n)]);
  });
  return result;
}

}  // namespace

at::Tensor outer_norm(const at::Tensor& a, const at::Tensor& g) {
  check_outer_windows("outer_norm", a, g);
  // Windows are worth writing out where the Gram matrices of positions are by far cheaper than the product.
  const int64_t S = g.size(2);
  if (a.dim() == 5 && S > 1 && !gram_is_cheaper(g.size(0), 2 * S, a.size(3) * a.size(4), g.size(3))) {
    const Primitives& level = primitives();
    const at::Tensor x = unit_columns(a), y = unit_columns_or_rows(g);
    switch (a.scalar_type()) {
      case at::kDouble:
        return norm_of_windows<double, double>(x, y, level.tile_double, level.pack_double, level.rows_double);
      case at::kFloat: return norm_of_windows<float, float>(x, y, level.tile_float, level.pack_float, level.rows_float);
      case at::kBFloat16:
        return norm_of_windows<BFloat16, float>(x, y, level.tile_float, level.pack_bfloat16, level.rows_float);
      default: return norm_of_windows<Float16, float>(x, y, level.tile_float, level.pack_float16, level.rows_float);
    }
  }
  return outer_norm_by(without_windows(a), g, piece_bytes(),
                       [](const at::Tensor& x, const at::Tensor& y, const at::Tensor& out) { add_dots(x, y, out); });
}

}  // namespace curvext::cpu
