#include <ATen/Parallel.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "../checks.h"
#include "../kernels.h"
#include "isa.h"
#include "outer_blocks.h"

// Sum over samples of the squared per-sample product. A block of the result stays in L2 as register tiles; for each
// group of samples the block's columns of a and g are packed into panels, then every tile contracts s in registers and
// adds the square to itself. Per-sample gradients exist in registers only.
namespace curvext::cpu {
namespace {

template <class S, class T>
class SquareBlock {
 public:
  SquareBlock(const OuterPair<S>& pair, const TileOps<T>& ops, PackOps<S, T> pack, const OuterBlock& block)
      : pair_(pair),
        ops_(ops),
        pack_(pack),
        block_(block),
        tile_values_(ops.rows * ops.columns * left_panels() * right_panels()),
        left_(panel_rows() * ops.rows * left_panels()),
        right_(panel_rows() * ops.columns * right_panels()),
        tiles_(tile_values_),
        tmp_(pair.positions > kPanelRows ? tile_values_ : 0) {}

  // Adds samples [begin, end).
  void add(int64_t begin, int64_t end) {
    if (pair_.positions > kPanelRows) return add_long(begin, end);
    const int64_t group = kPanelRows / pair_.positions;
    for (int64_t n = begin; n < end; n += group) {
      const int64_t samples = std::min(group, end - n);
      pack_right(n, 0, samples, pair_.positions);
      for (int64_t v = 0; v < pair_.vectors; ++v) {
        pack_left(v, n, 0, samples, pair_.positions);
        for_tiles([&](const T* left, const T* right, int64_t tile) {
          ops_.add_square(samples, pair_.positions, left, right, tiles_.data() + tile);
        });
      }
    }
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

  int64_t panel_rows() const { return std::min(kPanelRows, pair_.samples * pair_.positions); }
  int64_t left_panels() const { return (block_.rows + ops_.rows - 1) / ops_.rows; }
  int64_t right_panels() const { return (block_.columns + ops_.columns - 1) / ops_.columns; }

  // More positions than a panel holds: the product of one sample is summed in tmp, piece by piece, then squared.
  void add_long(int64_t begin, int64_t end) {
    const int64_t pieces = (pair_.positions + kPanelRows - 1) / kPanelRows;
    const int64_t piece = (pair_.positions + pieces - 1) / pieces;
    for (int64_t n = begin; n < end; ++n)
      for (int64_t v = 0; v < pair_.vectors; ++v) {
        std::fill_n(tmp_.data(), tile_values_, T(0));
        for (int64_t s = 0; s < pair_.positions; s += piece) {
          const int64_t count = std::min(piece, pair_.positions - s);
          pack_right(n, s, 1, count);
          pack_left(v, n, s, 1, count);
          for_tiles([&](const T* left, const T* right, int64_t tile) {
            ops_.add_product(count, left, right, tmp_.data() + tile);
          });
        }
        ops_.add_squared(tile_values_, tmp_.data(), tiles_.data());
      }
  }

  // a[n .. n + samples, s .. s + count, columns of the block], samples one after the other in each panel
  void pack_right(int64_t n, int64_t s, int64_t samples, int64_t count) {
    const S* source = pair_.a + n * pair_.a_sample + s * pair_.a_position + block_.column;
    used_ = samples * count;
    pack_samples(pack_.right, source, pair_.a_sample, pair_.a_position, samples, count, block_.columns, ops_.columns,
                 right_.data());
  }

  // g[v, n .. n + samples, s .. s + count, rows of the block]
  void pack_left(int64_t v, int64_t n, int64_t s, int64_t samples, int64_t count) {
    const S* source = pair_.g + v * pair_.g_vector + n * pair_.g_sample + s * pair_.g_position + block_.row;
    pack_samples(pack_.left, source, pair_.g_sample, pair_.g_position, samples, count, block_.rows, ops_.rows,
                 left_.data());
  }

  void pack_samples(typename PackOps<S, T>::Pack pack, const S* source, int64_t sample_stride, int64_t position_stride,
                    int64_t samples, int64_t count, int64_t extent, int64_t width, T* panels) {
    const int64_t panel_stride = used_ * width;
    if (count == 1) return pack(samples, extent, source, sample_stride, panel_stride, panels);
    for (int64_t n = 0; n < samples; ++n)
      pack(count, extent, source + n * sample_stride, position_stride, panel_stride, panels + n * count * width);
  }

  template <class Visit>
  void for_tiles(Visit visit) {
    const int64_t size = ops_.rows * ops_.columns;
    // the wide right panel stays in L1 while the narrow left ones stream by
    for (int64_t i = 0; i < right_panels(); ++i)
      for (int64_t o = 0; o < left_panels(); ++o)
        visit(left_.data() + o * used_ * ops_.rows, right_.data() + i * used_ * ops_.columns,
              (o * right_panels() + i) * size);
  }

  const OuterPair<S>& pair_;
  const TileOps<T>& ops_;
  PackOps<S, T> pack_;
  OuterBlock block_;
  int64_t used_ = 0;  // rows in each panel
  int64_t tile_values_;
  LineAligned<T> left_, right_, tiles_, tmp_;
};

template <class S, class T>
at::Tensor square(const at::Tensor& a, const at::Tensor& g, const TileOps<T>& ops, PackOps<S, T> pack) {
  const auto pair = outer_pair<S>(a, g);
  const auto type = accumulation_type(a.scalar_type());
  const int64_t O = g.size(3), I = a.size(2);
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

// S = 1: (g a)^2 = g^2 a^2, so the sum over v and n is one product of squares contracted over n, and that is the
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
  check_outer_pair("outer_square", a, g);
  if (a.size(1) == 1) return square_folded(a, g);
  const Primitives& level = primitives();
  const at::Tensor x = unit_columns(a), y = unit_columns(g);
  switch (a.scalar_type()) {
    case at::kDouble: return square<double, double>(x, y, level.tile_double, level.pack_double);
    case at::kFloat: return square<float, float>(x, y, level.tile_float, level.pack_float);
    case at::kBFloat16: return square<BFloat16, float>(x, y, level.tile_float, level.pack_bfloat16);
    default: return square<Float16, float>(x, y, level.tile_float, level.pack_float16);
  }
}

}  // namespace curvext::cpu
