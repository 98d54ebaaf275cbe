#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

#include "../workspace.h"
#include "isa.h"
#include "outer_blocks.h"

// The fused passes of the outer-product kernels over rows of their pieces.
namespace curvext::cpu {

// A piece of a plain product: large enough for a GEMM, small enough to be taken in from cache.
inline int64_t piece_bytes() { return workspace_bytes(int64_t(4) << 20); }
// About this many values are worth a thread.
constexpr int64_t kRowGrain = 16384;

// Calls visit(row operations, pointer to the values) for the storage type of a tensor.
template <class Visit>
void with_row_ops(const at::Tensor& tensor, Visit visit) {
  const Primitives& level = primitives();
  const void* data = tensor.const_data_ptr();
  switch (tensor.scalar_type()) {
    case at::kDouble: return visit(level.rows_double, static_cast<const double*>(data));
    case at::kFloat: return visit(level.rows_float, static_cast<const float*>(data));
    case at::kBFloat16: return visit(level.rows_bfloat16, static_cast<const BFloat16*>(data));
    default: return visit(level.rows_float16, static_cast<const Float16*>(data));
  }
}

template <class S, class T>
void add_dots(const at::Tensor& x, const at::Tensor& y, const S* values, const RowOps<S, T>& ops, T* out,
              int64_t out_row) {
  const T* left = x.const_data_ptr<T>();
  int64_t positions = x.size(1), features = x.size(2);
  if (x.stride(1) == features && y.stride(1) == features) {  // one row in memory
    features *= positions;
    positions = 1;
  }
  const int64_t grain = std::max<int64_t>(1, kRowGrain / std::max<int64_t>(1, positions * features));
  at::parallel_for(0, x.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T sum = 0;
      for (int64_t s = 0; s < positions; ++s)
        sum += ops.dot(features, left + r * x.stride(0) + s * x.stride(1), values + r * y.stride(0) + s * y.stride(1));
      out[r * out_row] += sum;
    }
  });
}

// out[r] += sum_sc x[r,s,c] y[r,s,c]; x and out have the accumulation type, y may have the storage type.
inline void add_dots(const at::Tensor& x, const at::Tensor& y, const at::Tensor& out) {
  const at::Tensor left = unit_columns(x), right = unit_columns(y);
  with_row_ops(right, [&](const auto& ops, const auto* values) {
    using T = decltype(ops.dot(0, nullptr, nullptr));
    add_dots(left, right, values, ops, out.data_ptr<T>(), out.stride(0));
  });
}

}  // namespace curvext::cpu
