#include "../outer_gram.h"

#include "../kernels.h"
#include "rows.h"

namespace curvext::cpu {
namespace {

// out[n,m] += sum_st p[n,s,m,t] q[n,s,m,t]; p and q contiguous, t in the order of memory
template <class T>
void add_pairs(const at::Tensor& p, const at::Tensor& q, const at::Tensor& out) {
  const int64_t S = p.size(1), M = p.size(2), R = p.size(3);
  const T *left = p.const_data_ptr<T>(), *right = q.const_data_ptr<T>();
  T* result = out.data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, kRowGrain / (S * M * R));
  at::parallel_for(0, p.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t s = 0; s < S; ++s)
        for (int64_t m = 0; m < M; ++m) {
          const int64_t row = ((n * S + s) * M + m) * R;
          T sum = 0;
          for (int64_t t = 0; t < R; ++t) sum += left[row + t] * right[row + t];
          result[n * out.stride(0) + m * out.stride(1)] += sum;
        }
  });
}

}  // namespace

at::Tensor outer_gram(const at::Tensor& a, const at::Tensor& g, const at::Tensor& a2, const at::Tensor& g2) {
  check_outer_gram("outer_gram", a, g, a2, g2);
  const bool is_double = a.scalar_type() == at::kDouble;
  return outer_gram_by(a, g, a2, g2, piece_bytes(), is_double ? add_pairs<double> : add_pairs<float>);
}

}  // namespace curvext::cpu
