#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "../draw.h"
#include "../softmax_args.h"
#include "../softmax_kinds.h"

// Run-time choice of the instruction set. Each level is the same source (csrc/cpu/isa/*.h) compiled for other vector
// registers; the best one that this processor has is used unless use_simd names a lower one.
namespace curvext::cpu {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// A register tile is `rows` x `columns` of the result. Panels are [panel][k][rows] and [panel][k][columns].
template <class T>
struct TileOps {
  int64_t rows, columns;
  // tile += sum over samples of (sum over the k of one sample of left[k][row] right[k][column])^2
  void (*add_square)(int64_t samples, int64_t k, const T* left, const T* right, T* tile);
  // tile += sum over k of left[k][row] right[k][column]
  void (*add_product)(int64_t k, const T* left, const T* right, T* tile);
  // tile += tmp^2, elementwise
  void (*add_squared)(int64_t count, const T* tmp, T* tile);
  // values *= values
  void (*square)(int64_t count, T* values);
  // norms[n] += sum over the tile of (sum over the k of sample n of left[k][row] right[k][column])^2
  void (*add_norm)(int64_t samples, int64_t k, const T* left, const T* right, double* norms);
};

// A run of neighbouring columns of one row: where it lies, counted from the row's first column, and where in the panels
// it goes, counted from the row's place in the first one.
struct Run {
  int64_t from, to, count;
};

// Copies `count` rows of `extent` columns into panels of a fixed width, `panel_stride` apart; what is left of the last
// panel is zero.
template <class S, class T>
struct PackOps {
  using Pack = void (*)(int64_t count, int64_t extent, const S* source, int64_t stride, int64_t panel_stride,
                        T* panels);
  Pack left, right;  // panels as wide as a tile has rows, columns; `stride` lies between rows, columns are neighbours
  Pack left_across;  // likewise, with `stride` between columns, rows being neighbours
  // right, for rows `stride` apart that lie in runs, none across two panels; the panels were zero
  void (*right_runs)(int64_t count, const Run* runs, int64_t run_count, const S* source, int64_t stride, T* panels);
};

// Rows of contiguous values.
template <class S, class T>
struct RowOps {
  T (*dot)(int64_t count, const T* x, const S* y);
  // y += c x, or y = c x
  void (*scale)(bool add, int64_t count, T c, const S* x, T* y);
};

// The widest panel: what is known of its positions stays in cache.
constexpr int64_t kSoftmaxPanelBytes = 4096;
// Vectors that one sweep takes at a time.
constexpr int64_t kSoftmaxVectors = 4;

// Three walks over the positions; each takes tasks [begin, end).
template <class S, class T>
struct SoftmaxWalks {
  using Walk = void (*)(const SoftmaxArgs<S, T>& args, int64_t begin, int64_t end, T* scratch);
  Walk rows;   // a task is a position, its classes contiguous; scratch holds C values
  Walk tiles;  // a task is `lanes` positions, gathered to stand side by side; scratch holds (1 + 2 vectors) C lanes
  // a task is a panel of neighbouring inner positions of one outer index, at most kSoftmaxPanelBytes of S
  void (*columns)(const SoftmaxArgs<S, T>& args, int64_t panel, int64_t begin, int64_t end);
};

template <class S, class T>
struct SoftmaxOps {
  int64_t lanes;  // positions of a tile
  SoftmaxWalks<S, T> hessian, root, root_t, residual, mass_residual, sample;
};

// out[k] = h u[k] with h = w l''(z), elementwise; and s = sqrt(w) dl/dz at a drawn target.
template <class S, class T>
struct ElementProblem {
  const S* z;
  const S* u;  // [K, count]
  const T* w;
  int64_t w_step;  // 1, or 0 for one weight
  S* out;
  int64_t count, vectors;
  Draw draw;
};

template <class S, class T>
struct ElementOps {
  using Run = void (*)(const ElementProblem<S, T>& problem, int64_t begin, int64_t end);
  Run mse_hessian, mse_sample, sigmoid_hessian, sigmoid_sample;
};

struct Primitives {
  const char* name;
  TileOps<float> tile_float;
  TileOps<double> tile_double;
  PackOps<double, double> pack_double;
  PackOps<float, float> pack_float;
  PackOps<BFloat16, float> pack_bfloat16;
  PackOps<Float16, float> pack_float16;
  RowOps<double, double> rows_double;
  RowOps<float, float> rows_float;
  RowOps<BFloat16, float> rows_bfloat16;
  RowOps<Float16, float> rows_float16;
  SoftmaxOps<double, double> softmax_double;
  SoftmaxOps<float, float> softmax_float;
  SoftmaxOps<BFloat16, float> softmax_bfloat16;
  SoftmaxOps<Float16, float> softmax_float16;
  ElementOps<double, double> element_double;
  ElementOps<float, float> element_float;
  ElementOps<BFloat16, float> element_bfloat16;
  ElementOps<Float16, float> element_float16;
};

const Primitives& primitives();

// Levels that this processor runs, lowest first, and the one in use.
std::vector<std::string> simd_levels();
std::string simd_level();
void use_simd(const std::string& level);

// Whether a plain product of matrices is faster by tiles than by PyTorch's library: MKL dispatches slower code on
// non-Intel CPUs.
bool products_by_tiles();
void use_products_by_tiles(bool tiles);

}  // namespace curvext::cpu
