#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "../checks.h"
#include "isa.h"
#include "outer_panels.h"

// Sum over samples of the squared per-sample product, or of a product g a^T with one position. A block of the result
// stays in L2 as register tiles; for each group of samples the block's columns of a and g are packed into panels, then
// every tile contracts s in registers and adds what comes to itself. Per-sample gradients exist in registers only.
namespace curvext::cpu {

template <bool Squared, class S, class T>
class TileSum {
 public:
  TileSum(const OuterPair<S>& pair, const TileOps<T>& ops, PackOps<S, T> pack, const OuterBlock& block)
      : products_(pair, ops, pack, block),
        positions_(pair.positions),
        ops_(ops),
        block_(block),
        tiles_(products_.tile_values()) {
    std::fill_n(tiles_.data(), products_.tile_values(), T(0));
    if (Squared && positions_ == 1) products_.take_squares();
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

// Sum over samples (and v) of G^2, or of G where samples have one position; the type of a is S, of the result T.
// Written to `into` [O,I], where that is given, whose rows have no gaps: a result of its own would double the memory.
template <bool Squared, class S, class T>
at::Tensor sum_by_tiles(const at::Tensor& a, const at::Tensor& g, const TileOps<T>& ops, PackOps<S, T> pack,
                        const at::Tensor& into = {}) {
  const auto pair = outer_pair<S>(a, g);
  const auto type = accumulation_type(a.scalar_type());
  const int64_t O = g.size(3), I = a.dim() == 5 ? a.size(3) * a.size(4) : a.size(2);
  if (O == 0 || I == 0 || pair.samples == 0 || pair.positions == 0 || pair.vectors == 0)
    return into.defined() ? into.zero_() : at::zeros({O, I}, a.options().dtype(type));
  const OuterPlan plan(O, I, pair, ops.rows, ops.columns);
  const at::Tensor parts =
      into.defined() && plan.splits == 1 ? into.unsqueeze(0) : at::empty({plan.splits, O, I}, a.options().dtype(type));
  T* out = parts.data_ptr<T>();
  at::parallel_for(0, plan.tasks(), plan.grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      TileSum<Squared, S, T> block(pair, ops, pack, plan.block(task));
      const auto [first, last] = plan.samples(task);
      block.add(first, last);
      block.write(out + plan.split(task) * parts.stride(0), parts.stride(1));
    }
  });
  if (plan.splits == 1) return parts[0];
  return into.defined() ? into.copy_(parts.sum(0)) : parts.sum(0);
}

// x^T y for wide x [M,O] and y [M,I]; written to `into` where that is given.
inline at::Tensor product_by_tiles(const at::Tensor& x, const at::Tensor& y, const at::Tensor& into = {}) {
  const Primitives& level = primitives();
  const at::Tensor a = unit_columns(y.unsqueeze(1)), g = unit_columns(x.unsqueeze(0).unsqueeze(2));
  if (a.scalar_type() == at::kDouble)
    return sum_by_tiles<false, double, double>(a, g, level.tile_double, level.pack_double, into);
  return sum_by_tiles<false, float, float>(a, g, level.tile_float, level.pack_float, into);
}

}  // namespace curvext::cpu
