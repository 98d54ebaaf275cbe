#pragma once

#include <algorithm>
#include <vector>

#include "isa.h"
#include "outer_blocks.h"

// Per-sample products of one block of G_vn, tile by tile in registers: for each group of samples the block's columns of
// a and g are packed into panels, which every tile of the block then reads from L1 and L2.
namespace curvext::cpu {

template <class S, class T>
class PanelProducts {
 public:
  PanelProducts(const OuterPair<S>& pair, const TileOps<T>& ops, PackOps<S, T> pack, const OuterBlock& block)
      : pair_(pair),
        ops_(ops),
        pack_(pack),
        block_(block),
        left_(panel_rows() * ops.rows * left_panels()),
        right_(panel_rows() * ops.columns * right_panels()),
        tmp_(pair.positions > kPanelRows ? tile_values() : 0) {}

  // Packs the squares of a and g from now on.
  void take_squares() { squares_ = true; }

  // For samples [begin, end): visit(v, n, samples, left, right, tile) for runs of whole samples in the panels of a
  // tile, which starts at value `tile` of the block; where one sample is longer than a panel, its product is summed
  // piece by piece and done(v, n, values) gets all of it. Values beyond the edges of the block are zero.
  template <class Visit, class Done>
  void over(int64_t begin, int64_t end, Visit visit, Done done) {
    if (pair_.positions > kPanelRows) return over_long(begin, end, done);
    const int64_t group = kPanelRows / pair_.positions;
    for (int64_t n = begin; n < end; n += group) {
      const int64_t samples = std::min(group, end - n);
      pack_right(n, 0, samples, pair_.positions);
      for (int64_t v = 0; v < pair_.vectors; ++v) {
        pack_left(v, n, 0, samples, pair_.positions);
        for_tiles([&](const T* left, const T* right, int64_t tile) { visit(v, n, samples, left, right, tile); });
      }
    }
  }

  int64_t tile_values() const { return ops_.rows * ops_.columns * left_panels() * right_panels(); }

 private:
  int64_t panel_rows() const { return std::min(kPanelRows, pair_.samples * pair_.positions); }
  int64_t left_panels() const { return (block_.rows + ops_.rows - 1) / ops_.rows; }
  int64_t right_panels() const { return (block_.columns + ops_.columns - 1) / ops_.columns; }

  template <class Done>
  void over_long(int64_t begin, int64_t end, Done done) {
    const int64_t pieces = (pair_.positions + kPanelRows - 1) / kPanelRows;
    const int64_t piece = (pair_.positions + pieces - 1) / pieces;
    for (int64_t n = begin; n < end; ++n)
      for (int64_t v = 0; v < pair_.vectors; ++v) {
        std::fill_n(tmp_.data(), tile_values(), T(0));
        for (int64_t s = 0; s < pair_.positions; s += piece) {
          const int64_t count = std::min(piece, pair_.positions - s);
          pack_right(n, s, 1, count);
          pack_left(v, n, s, 1, count);
          for_tiles([&](const T* left, const T* right, int64_t tile) {
            ops_.add_product(count, left, right, tmp_.data() + tile);
          });
        }
        done(v, n, tmp_.data());
      }
  }

  // a[n .. n + samples, s .. s + count, columns of the block], samples one after the other in each panel
  void pack_right(int64_t n, int64_t s, int64_t samples, int64_t count) {
    const bool same = used_ == samples * count;
    used_ = samples * count;
    const bool plain = pair_.run >= block_.column + block_.columns && pair_.line == pair_.positions;
    if (!plain && !same) {
      find_runs(used_ * ops_.columns);
      std::fill_n(right_.data(), used_ * ops_.columns * right_panels(), T(0));
    }
    for (int64_t i = 0; i < samples; ++i) {
      const S* source = pair_.a + (n + i) * pair_.a_sample;
      T* panels = right_.data() + i * count * ops_.columns;
      if (plain)
        pack_.right(count, block_.columns, source + s * pair_.a_position + block_.column, pair_.a_position,
                    used_ * ops_.columns, panels);
      else pack_windows(source, s, count, panels);
    }
    if (squares_) ops_.square(used_ * ops_.columns * right_panels(), right_.data());
  }

  // Line by line of positions, each position from its runs.
  void pack_windows(const S* sample, int64_t s, int64_t count, T* panels) {
    for (int64_t k = 0; k < count;) {
      const int64_t line = (s + k) / pair_.line, inside = (s + k) % pair_.line;
      const int64_t positions = std::min(pair_.line - inside, count - k);
      pack_.right_runs(positions, runs_.data(), int64_t(runs_.size()),
                       sample + line * pair_.a_line + inside * pair_.a_position, pair_.a_position,
                       panels + k * ops_.columns);
      k += positions;
    }
  }

  // Where the block's columns of one position lie, cut at the edges of runs and of panels `stride` apart.
  void find_runs(int64_t stride) {
    runs_.clear();
    for (int64_t done = 0; done < block_.columns;) {
      const int64_t column = block_.column + done, inside = column % pair_.run;
      const int64_t panel = done / ops_.columns, in_panel = done % ops_.columns;
      const int64_t count = std::min({pair_.run - inside, ops_.columns - in_panel, block_.columns - done});
      runs_.push_back({column / pair_.run * pair_.a_run + inside, panel * stride + in_panel, count});
      done += count;
    }
  }

  // g[v, n .. n + samples, s .. s + count, rows of the block]
  void pack_left(int64_t v, int64_t n, int64_t s, int64_t samples, int64_t count) {
    const bool rows = pair_.g_feature == 1;
    for (int64_t i = 0; i < samples; ++i) {
      const S* source =
          pair_.g + v * pair_.g_vector + (n + i) * pair_.g_sample + s * pair_.g_position + block_.row * pair_.g_feature;
      (rows ? pack_.left : pack_.left_across)(count, block_.rows, source, rows ? pair_.g_position : pair_.g_feature,
                                              used_ * ops_.rows, left_.data() + i * count * ops_.rows);
    }
    if (squares_) ops_.square(used_ * ops_.rows * left_panels(), left_.data());
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
  bool squares_ = false;
  LineAligned<T> left_, right_;
  std::vector<Run> runs_;  // of one position
  LineAligned<T> tmp_;
};

}  // namespace curvext::cpu
