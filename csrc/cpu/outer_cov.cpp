#include "../outer_cov.h"

#include "../kernels.h"
#include "rows.h"

namespace curvext::cpu {
namespace {

// Columns of a strip: half of a product's work is left out but for the tiles on the diagonal.
constexpr int64_t kTile = 128;
// Rows and columns that are mirrored at a time: a cache line of each row, which is read whole before the next row's, as
// rows a power of two apart drive each other out of the cache.
constexpr int64_t kMirrorTile = 16;

// out[i,j] = out[j,i] for j < i; out contiguous
template <class T>
void mirror(const at::Tensor& out) {
  const int64_t D = out.size(0);
  T* values = out.data_ptr<T>();
  const int64_t bands = (D + kMirrorTile - 1) / kMirrorTile;
  const int64_t grain = std::max<int64_t>(1, kRowGrain / (kMirrorTile * D));
  at::parallel_for(0, bands, grain, [&](int64_t begin, int64_t end) {
    T turned[kMirrorTile][kMirrorTile];
    for (int64_t band = begin; band < end; ++band) {
      const int64_t i_begin = band * kMirrorTile, i_end = std::min(i_begin + kMirrorTile, D);
      for (int64_t j_begin = 0; j_begin < i_end; j_begin += kMirrorTile) {
        const int64_t j_end = std::min(j_begin + kMirrorTile, D);
        for (int64_t j = j_begin; j < j_end; ++j)
          for (int64_t i = i_begin; i < i_end; ++i) turned[i - i_begin][j - j_begin] = values[j * D + i];
        for (int64_t i = i_begin; i < i_end; ++i)
          for (int64_t j = j_begin; j < std::min(j_end, i); ++j) values[i * D + j] = turned[i - i_begin][j - j_begin];
      }
    }
  });
}

}  // namespace

at::Tensor outer_cov(const at::Tensor& x, const at::Tensor& w) {
  check_outer_cov("outer_cov", x, w);
  const bool is_double = x.scalar_type() == at::kDouble;
  return outer_cov_by(x, w, cov_bytes(x, int64_t(4) << 20), kTile, is_double ? mirror<double> : mirror<float>);
}

}  // namespace curvext::cpu
