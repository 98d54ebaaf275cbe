#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>

// How the outer-product kernels cut their work: blocks of the result, and where these are fewer than the threads, also
// runs of samples, whose partial sums are added in the order of the samples.
namespace curvext::cpu {

// Rows of one packed panel: a wide and a narrow one fit in L1 together, a block's worth of both in L2.
constexpr int64_t kPanelRows = 128;
// Largest block of the result; with its panels it fills a megabyte of float32. Larger blocks are packed less often.
constexpr int64_t kBlockRows = 288;
constexpr int64_t kBlockColumns = 512;

// Storage that starts on a cache line, as a vector load across two of them costs twice; its values are not set.
template <class T>
class LineAligned {
 public:
  explicit LineAligned(int64_t count) : values_(new T[size_t(count) + kLine / sizeof(T)]) {}
  T* data() const {
    const auto address = reinterpret_cast<uintptr_t>(values_.get());
    return values_.get() + (kLine - address % kLine) % kLine / sizeof(T);
  }

 private:
  static constexpr size_t kLine = 64;
  std::unique_ptr<T[]> values_;
};

// a[n,s,i] and g[v,n,s,o] in memory. Positions come in lines and features in runs, so that the windows of a
// convolution are read where they lie; for a plain a there is one line and one run.
template <class S>
struct OuterPair {
  const S* a;
  const S* g;
  int64_t vectors, samples, positions;
  int64_t a_sample, a_line, a_position, a_run;  // strides
  int64_t line, run;                            // positions of a line, features of a run
  int64_t g_vector, g_sample, g_position, g_feature;
};

// Neighbouring features must be neighbours in memory; any other stride is taken as it is.
inline at::Tensor unit_columns(const at::Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) == 1 || tensor.size(last) <= 1 ? tensor : tensor.contiguous();
}

// Neighbouring features, or else neighbouring positions, must be neighbours in memory.
inline at::Tensor unit_columns_or_rows(const at::Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return tensor.stride(last) != 1 && tensor.stride(last - 1) == 1 ? tensor : unit_columns(tensor);
}

// Of a [N,S,I] or [N,S1,S2,I1,I2] with unit columns, and g [V,N,S,O] with unit columns or rows.
template <class S>
OuterPair<S> outer_pair(const at::Tensor& a, const at::Tensor& g) {
  const bool windows = a.dim() == 5;
  OuterPair<S> pair;
  pair.a = static_cast<const S*>(a.const_data_ptr());
  pair.g = static_cast<const S*>(g.const_data_ptr());
  pair.vectors = g.size(0);
  pair.samples = g.size(1);
  pair.positions = g.size(2);
  pair.a_sample = a.stride(0);
  pair.a_line = windows ? a.stride(1) : 0;
  pair.a_position = windows ? a.stride(2) : a.stride(1);
  pair.a_run = windows ? a.stride(3) : 0;
  pair.line = windows ? a.size(2) : a.size(1);
  pair.run = windows ? a.size(4) : a.size(2);
  pair.g_vector = g.stride(0);
  pair.g_sample = g.stride(1);
  pair.g_position = g.stride(2);
  pair.g_feature = g.size(3) <= 1 ? 1 : g.stride(3);
  return pair;
}

struct OuterBlock {
  int64_t row, rows, column, columns;
};

class OuterPlan {
 public:
  template <class S>
  OuterPlan(int64_t O, int64_t I, const OuterPair<S>& pair, int64_t tile_rows, int64_t tile_columns)
      : splits(1), rows_(O), columns_(I), samples_(pair.samples) {
    const int64_t threads = at::get_num_threads();
    block_rows_ = even_block(O, kBlockRows, tile_rows, 1);
    block_columns_ = even_block(I, kBlockColumns, tile_columns, 1);
    // Cutting rows packs a once more; cutting samples makes one more result to be added, which may be the smaller.
    const bool small = blocks() == 1 && 8 * threads * O < pair.samples * pair.positions;
    if (blocks() % threads != 0 && blocks() < 4 * threads && !small)
      block_rows_ = even_block(O, kBlockRows, tile_rows, threads);
    // Waking threads costs more than a small product, most of all on a busy machine.
    if (2.0 * double(pair.vectors * pair.samples * pair.positions) * double(O * I) < 1e6) {
      grain = blocks();
      return;
    }
    if (blocks() < threads) splits = std::clamp<int64_t>(threads / blocks(), 1, std::max<int64_t>(pair.samples, 1));
  }

  int64_t tasks() const { return blocks() * splits; }
  int64_t split(int64_t task) const { return task / blocks(); }

  OuterBlock block(int64_t task) const {
    const int64_t at = task % blocks();
    const int64_t row = at / across() * block_rows_, column = at % across() * block_columns_;
    return {row, std::min(block_rows_, rows_ - row), column, std::min(block_columns_, columns_ - column)};
  }

  std::pair<int64_t, int64_t> samples(int64_t task) const {
    const int64_t s = split(task);
    return {samples_ * s / splits, samples_ * (s + 1) / splits};
  }

  int64_t splits;
  int64_t grain = 1;  // tasks that are worth a thread

 private:
  static int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

  // The extent in equal blocks of whole tiles, none above `limit`, their number a multiple of `multiple` where it fits.
  static int64_t even_block(int64_t extent, int64_t limit, int64_t tile, int64_t multiple) {
    const int64_t tiles = ceil_div(extent, tile);
    const int64_t blocks = ceil_div(ceil_div(tiles * tile, limit), multiple) * multiple;
    return std::max<int64_t>(1, ceil_div(tiles, blocks)) * tile;
  }

  int64_t across() const { return ceil_div(columns_, block_columns_); }
  int64_t blocks() const { return ceil_div(rows_, block_rows_) * across(); }

  int64_t rows_, columns_, samples_, block_rows_ = 1, block_columns_ = 1;
};

}  // namespace curvext::cpu
