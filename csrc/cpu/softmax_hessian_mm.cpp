#include <ATen/Parallel.h>
#include <ATen/ops/movedim.h>

#include <algorithm>
#include <memory>

#include "../checks.h"
#include "../kernels.h"
#include "../softmax_layout.h"
#include "isa.h"

namespace curvext::cpu {
namespace {

// About this many logits are worth a thread.
constexpr int64_t kGrain = 16384;

template <class S, class T>
void fill(const SoftmaxLayout& layout, const at::Tensor& w, const SoftmaxOps<S, T>& ops) {
  const Folded &z = layout.zf, &u = layout.uf, &out = layout.outf;
  const SoftmaxProblem<S, T> problem{static_cast<const S*>(layout.z.const_data_ptr()),
                                     static_cast<const S*>(layout.u.const_data_ptr()),
                                     w.const_data_ptr<T>(),
                                     static_cast<S*>(layout.out.data_ptr()),
                                     layout.u.size(0),
                                     z.outer,
                                     z.classes,
                                     z.inner,
                                     z.outer_stride,
                                     z.class_stride,
                                     layout.u.stride(0),
                                     u.outer_stride,
                                     u.class_stride,
                                     layout.out.stride(0),
                                     out.outer_stride,
                                     out.class_stride};
  const int64_t work = std::max<int64_t>(1, z.classes * problem.vectors);
  if (z.inner == 1) {
    at::parallel_for(0, z.outer, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
      const auto exponentials = std::unique_ptr<T[]>(new T[z.classes]);
      ops.rows(problem, begin, end, exponentials.get());
    });
    return;
  }
  const int64_t blocks = (z.inner + ops.block - 1) / ops.block;
  at::parallel_for(0, z.outer * blocks, std::max<int64_t>(1, kGrain / (work * ops.block)),
                   [&](int64_t begin, int64_t end) {
                     const auto scratch = std::unique_ptr<T[]>(new T[2 * z.classes * ops.block]);
                     ops.columns(problem, begin, end, scratch.get());
                   });
}

}  // namespace

at::Tensor softmax_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w, int64_t dim) {
  dim = check_softmax("softmax_hessian_mm", z, u, w, dim);
  const SoftmaxLayout layout = softmax_layout(z, u, dim);
  if (layout.out.numel() == 0) return at::movedim(layout.out, layout.dim + 1, dim + 1);
  const at::Tensor weights = w.to(accumulation_type(z.scalar_type())).contiguous();
  const Primitives& level = primitives();
  switch (z.scalar_type()) {
    case at::kDouble: fill(layout, weights, level.softmax_double); break;
    case at::kFloat: fill(layout, weights, level.softmax_float); break;
    case at::kBFloat16: fill(layout, weights, level.softmax_bfloat16); break;
    default: fill(layout, weights, level.softmax_float16);
  }
  return layout.dim == dim ? layout.out : at::movedim(layout.out, layout.dim + 1, dim + 1);
}

}  // namespace curvext::cpu
