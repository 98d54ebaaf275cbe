#include <ATen/Parallel.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../checks.h"
#include "../kernels.h"
#include "isa.h"
#include "outer_panels.h"

// Sum over samples of the squared per-sample product. A block of the result stays in L2 as register tiles; for each
// group of samples the block's columns of a and g are packed into panels, then every tile contracts s in registers and
// adds the square to itself. Per-sample gradients exist in registers only.
namespace curvext::cpu {
namespace {

template <class S, class T>
class SquareBlock {
 public:
  SquareBlock(const OuterPair<S>& pair, const TileOps<T>& ops, PackOps<S, T> pack, const OuterBlock& block)
      : products_(pair, ops, pack, block),
        positions_(pair.positions),
        ops_(ops),
        block_(block),
        tiles_(products_.tile_values()) {
    std::fill_n(tiles_.data(), products_.tile_values(), T(0));
    if (positions_ == 1) products_.take_squares();
  }

  // Adds samples [begin, end).
  void add(int64_t begin, int64_t end) {
    products_.over(
        begin, end,
        [&](int64_t, int64_t, int64_t samples, const T* left, const T* right, int64_t tile) {
          // of one position (g a)^2 = g^2 a^2, so that the sum over samples is a product of squares
          if (positions_ == 1) ops_.add_product(samples, left, right, tiles_.data() + tile);
          else ops_.add_square(samples, positions_, left, right, tiles_.data() + tile);
        },
        [&](int64_t, int64_t, const T* values) { ops_.add_squared(products_.tile_values(), values, tiles_.data()); });
  }

  // Writes the block to result [O,I], whose rows are `stride` apart.
  void write(T* result, int64_t stride) const {
    const T* tile = tiles_.data();
    for (int64_t o = 0; o < block_.rows; o += ops_.rows)
      for (int64_t i = 0; i < block_.columns; i += ops_.columns, tile += ops_.rows * ops_.columns)
        write_tile(tile, std::min(ops_.rows, block_.rows - o), std::min(ops_.columns, block_.columns - i),
                   result + (block_.row + o) * stride + block_.column + i, stride);
  }

 private:
  void write_tile(const T* tile, int64_t rows, int64_t columns, T* result, int64_t stride) const {
    for (int64_t o = 0; o < rows; ++o) std::copy_n(tile + o * ops_.columns, columns, result + o * stride);
  }

  PanelProducts<S, T> products_;
  int64_t positions_;
  const TileOps<T>& ops_;
  OuterBlock block_;
  LineAligned<T> tiles_;
};

template <class S, class T>
at::Tensor square(const at::Tensor& a, const at::Tensor& g, const TileOps<T>& ops, PackOps<S, T> pack) {
  const auto pair = outer_pair<S>(a, g);
  const auto type = accumulation_type(a.scalar_type());
  const int64_t O = g.size(3), I = a.dim() == 5 ? a.size(3) * a.size(4) : a.size(2);
  if (O == 0 || I == 0 || pair.samples == 0 || pair.positions == 0 || pair.vectors == 0)
    return at::zeros({O, I}, a.options().dtype(type));
  const OuterPlan plan(O, I, pair, ops.rows, ops.columns);
  at::Tensor parts = at::empty({plan.splits, O, I}, a.options().dtype(type));
  T* out = parts.data_ptr<T>();
  at::parallel_for(0, plan.tasks(), plan.grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      SquareBlock<S, T> block(pair, ops, pack, plan.block(task));
      const auto [first, last] = plan.samples(task);
      block.add(first, last);
      block.write(out + plan.split(task) * O * I, I);
    }
  });
  return plan.splits == 1 ? parts[0] : parts.sum(0);
}

// S = 1: (g a)^2 = g^2 a^2, so the sum over v and n is one product of squares contracted over n, and that is mostly the
// library GEMM's own ground. The squares are taken of as many samples as fit the workspace.
at::Tensor square_folded(const at::Tensor& a, const at::Tensor& g) {
  constexpr int64_t kWorkspace = int64_t(4) << 20;  // stays in the last-level cache
  const int64_t N = a.size(0), I = a.size(2), O = g.size(3);
  const auto type = accumulation_type(a.scalar_type());
  const int64_t row_bytes = (I + O * std::min<int64_t>(g.size(0), 2)) * at::elementSize(type);
  const int64_t step = std::max<int64_t>(1, kWorkspace / std::max<int64_t>(1, row_bytes));
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
    case at::kDouble: return square<double, double>(x, y, level.tile_double, level.pack_double);
    case at::kFloat: return square<float, float>(x, y, level.tile_float, level.pack_float);
    case at::kBFloat16: return square<BFloat16, float>(x, y, level.tile_float, level.pack_bfloat16);
    default: return square<Float16, float>(x, y, level.tile_float, level.pack_float16);
  }
}

}  // namespace curvext::cpu
